#include "host/core/row_map.hpp"

#include <fmt/format.h>

#include <algorithm>

#include <mamba/check.hpp>

namespace mamba {

namespace {

// A bit for each row of a state, none set at first.
class RowSet {
 public:
  RowSet(std::int64_t rows, Scratch& scratch)
      : words_(scratch.take({rows / 32 + 1}, DType::i32).data<std::int32_t>()) {
    std::fill_n(words_, rows / 32 + 1, 0);
  }
  bool has(std::int32_t row) const { return row >= 0 && (words_[row / 32] >> row % 32 & 1) != 0; }
  void add(std::int32_t row) {
    words_[row / 32] = static_cast<std::int32_t>(static_cast<std::uint32_t>(words_[row / 32]) |
                                                 std::uint32_t{1} << row % 32);
  }

 private:
  std::int32_t* words_;
};

}  // namespace

void check_rows(const char* where, const RowMap& rows, std::int64_t batch, std::int64_t state_rows,
                Stream& stream) {
  if (!rows.read && !rows.write) return;
  check::is(where, "rows.read", rows.read, {batch}, DType::i32, stream.device());
  check::is(where, "rows.write", rows.write, {batch}, DType::i32, stream.device());
  if (stream.device().is_cuda()) return;
  const auto* read = rows.read.data<std::int32_t>();
  const auto* write = rows.write.data<std::int32_t>();
  const auto below = [&](const char* name, std::int32_t row) {
    if (row < state_rows) return;
    throw ArgumentError(where, name, fmt::format("rows below {}", state_rows),
                        fmt::format("{}", row));
  };
  for (std::int64_t b = 0; b < batch; ++b) {
    below("rows.read", read[b]);
    below("rows.write", write[b]);
  }
  Scratch scratch(stream);
  RowSet written(state_rows, scratch), wrong(state_rows, scratch);
  bool any = false;
  const auto add_wrong = [&](std::int32_t row) {
    wrong.add(row);
    any = true;
  };
  for (std::int64_t b = 0; b < batch; ++b) {
    if (written.has(write[b])) add_wrong(write[b]);
    if (write[b] >= 0) written.add(write[b]);
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    if (written.has(read[b]) && write[b] != read[b]) add_wrong(read[b]);
  }
  for (std::int64_t b = 0; any && b < batch; ++b) {
    if (!wrong.has(write[b])) continue;
    throw ArgumentError(where, "rows.write", "no row that another batch row reads or writes",
                        fmt::format("row {} from batch row {}", write[b], b));
  }
}

}  // namespace mamba
