// The checks that the operands of every operation share: named, typed and on the stream's device.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <string>

#include <mamba/check.hpp>
#include <mamba/stream.hpp>

namespace mamba {

class Operands {
 public:
  Operands(const char* where, const Stream& stream) : where_(where), device_(stream.device()) {}

  void is(const char* name, const ConstTensorView& view, const Shape& shape, DType dtype) const {
    check::is(where_, name, view, shape, dtype, device_);
  }
  void optional(const char* name, const ConstTensorView& view, const Shape& shape,
                DType dtype) const {
    if (view) is(name, view, shape, dtype);
  }
  void is_storage(const char* name, const ConstTensorView& view, const Shape& shape) const {
    check::storage(where_, name, view);
    is(name, view, shape, view.dtype());
  }
  // Of storage dtype `dtype`, or f32.
  void is_storage_or_f32(const char* name, const ConstTensorView& view, const Shape& shape,
                         DType dtype) const {
    check::dtype(where_, name, view, {dtype, DType::f32});
    is(name, view, shape, view.dtype());
  }
  void rank(const char* name, const ConstTensorView& view, int rank) const {
    check::rank(where_, name, view, rank);
  }
  void at_most_rank_3(const char* name, const ConstTensorView& view) const {
    if (view.rank() > 3) fail(name, "at most 3 dimensions", view.shape().to_string());
  }
  void dense(const char* name, const ConstTensorView& view) const {
    if (view && !view.is_dense()) fail(name, "a dense tensor", "a strided view");
  }
  // An operand that has nothing to be the gradient of.
  void not_without(const char* name, const ConstTensorView& view, const char* other,
                   const ConstTensorView& needed) const {
    if (view && !needed) fail(name, fmt::format("none (there is no {})", other), "a tensor");
  }
  void finite(const char* name, float value, float low) const {
    if (!(value >= low) || !std::isfinite(value)) {
      fail(name, fmt::format("a finite number of at least {}", low), fmt::format("{}", value));
    }
  }
  [[noreturn]] void fail(const char* name, const std::string& expected,
                         const std::string& got) const {
    throw ArgumentError(where_, name, expected, got);
  }
  const char* where() const { return where_; }

 private:
  const char* where_;
  Device device_;
};

inline Shape with_channels(const ConstTensorView& view, std::int64_t channels) {
  return view.shape().with(view.rank() - 1, channels);
}

// Of SelectiveScan::chunk_states; a chunk length that makes none is an error.
inline Shape chunk_states_shape(const Operands& operands, const ConstTensorView& x,
                                std::int64_t d_state, std::int64_t chunk_steps) {
  check::range(operands.where(), "chunk_steps", chunk_steps, 1, std::int64_t{1} << 30);
  const std::int64_t chunks = (x.dim(1) + chunk_steps - 1) / chunk_steps;
  return {x.dim(0), chunks, x.dim(2), d_state};
}

}  // namespace mamba
