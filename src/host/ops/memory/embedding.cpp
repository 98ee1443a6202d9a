// y[b, t, :] = table[ids[b, t], :]: rows copied, or widened to f32.
#include <fmt/format.h>

#include <cstring>
#include <type_traits>

#include "detail/backend.hpp"
#include "detail/visit.hpp"

namespace mamba::host {

namespace {

template <class T, class Y>
void gather(const Embedding& op) {
  const std::int64_t width = op.table.dim(1);
  const T* table = op.table.data<T>();
  const auto* ids = op.ids.data<std::int32_t>();
  Y* y = op.y.data<Y>();
  for (std::int64_t b = 0; b < op.ids.dim(0); ++b) {
    for (std::int64_t t = 0; t < op.ids.dim(1); ++t) {
      const T* from = table + ids[b * op.ids.row_pitch() + t] * op.table.row_pitch();
      Y* to = y + b * op.y.row_pitch() + t * op.y.step_pitch();
      if constexpr (std::is_same_v<T, Y>) {
        std::memcpy(to, from, static_cast<std::size_t>(width) * sizeof(T));
      } else {
        for (std::int64_t i = 0; i < width; ++i) to[i] = static_cast<Y>(from[i]);
      }
    }
  }
}

// All of them before the first write: after an error the output is untouched.
void check_ids(const ConstTensorView& ids, std::int64_t vocab) {
  const auto* data = ids.data<std::int32_t>();
  for (std::int64_t b = 0; b < ids.dim(0); ++b) {
    for (std::int64_t t = 0; t < ids.dim(1); ++t) {
      const std::int32_t id = data[b * ids.row_pitch() + t];
      if (id < 0 || id >= vocab) {
        throw ArgumentError("embedding", "ids",
                            vocab > 0 ? fmt::format("0 to {}", vocab - 1) : "no ids (empty table)",
                            fmt::format("{}", id));
      }
    }
  }
}

}  // namespace

void run(const Embedding& op, Stream&) {
  check_ids(op.ids, op.table.dim(0));
  if (op.y.count() == 0) return;
  detail::visit(op.table.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (op.y.dtype() == DType::f32) return gather<T, float>(op);
    gather<T, T>(op);
  });
}

}  // namespace mamba::host
