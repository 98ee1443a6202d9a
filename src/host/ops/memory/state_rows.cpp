// CopyRows and ZeroRows: whole rows of a state at the speed of memcpy.
#include <cstring>

#include "detail/backend.hpp"

namespace mamba::host {

namespace {

std::size_t row_bytes(const ConstTensorView& view) {
  return static_cast<std::size_t>(view.count() / view.dim(0) * size_of(view.dtype()));
}

}  // namespace

void run(const CopyRows& op, Stream&) {
  const std::size_t bytes = row_bytes(op.from);
  const auto* from = static_cast<const char*>(op.from.data());
  auto* to = static_cast<char*>(op.to.data());
  const auto* from_rows = op.from_rows ? op.from_rows.data<std::int32_t>() : nullptr;
  const auto* to_rows = op.to_rows ? op.to_rows.data<std::int32_t>() : nullptr;
  const std::int64_t n = op.from_rows ? op.from_rows.dim(0)
                         : op.to_rows ? op.to_rows.dim(0)
                                      : op.from.dim(0);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto source = static_cast<std::size_t>(from_rows != nullptr ? from_rows[i] : i);
    const auto target = static_cast<std::size_t>(to_rows != nullptr ? to_rows[i] : i);
    std::memcpy(to + target * bytes, from + source * bytes, bytes);
  }
}

void run(const ZeroRows& op, Stream& stream) {
  const auto* mask = op.mask ? op.mask.data<std::int32_t>() : nullptr;
  const auto* read = op.mask ? nullptr : op.padding.read.data<std::int32_t>();
  const auto* write = op.mask ? nullptr : op.padding.write.data<std::int32_t>();
  for (std::int64_t b = 0; b < op.view.dim(0); ++b) {
    const bool chosen = mask != nullptr ? mask[b] != 0 : read[b] < 0 && write[b] < 0;
    if (chosen) zero(op.view.rows(b, 1), stream);
  }
}

}  // namespace mamba::host
