// The checks that the operands of every operation share: named, typed and on the stream's device.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include <mamba/check.hpp>
#include <mamba/stream.hpp>

#include "detail/scan_decays.hpp"
#include "detail/weight_dtypes.hpp"

namespace mamba {

// Whether two views share an element, or may: false is sure.
inline bool overlap(const ConstTensorView& a, const ConstTensorView& b) {
  struct Extent {
    std::uintptr_t first;
    std::int64_t row, step, width, steps, bytes;  // pitches, and what lies between them
    explicit Extent(const ConstTensorView& v) : first(reinterpret_cast<std::uintptr_t>(v.data())) {
      const std::int64_t element = size_of(v.dtype());
      width = element;
      for (int i = v.rank() > 2 ? 2 : 1; i < v.rank(); ++i) width *= v.dim(i);
      row = v.row_pitch() * element;
      step = v.rank() > 2 ? v.step_pitch() * element : row;
      steps = v.rank() > 2 ? (v.dim(1) - 1) * step + width : width;
      bytes = (v.dim(0) - 1) * row + steps;
    }
  };
  if (!a || !b || a.device() != b.device()) return false;
  const Extent x(a), y(b);
  const auto distance = static_cast<std::int64_t>(y.first - x.first);
  if (distance >= x.bytes || -distance >= y.bytes) return false;
  if (a.count() == 0 || b.count() == 0) return false;
  // Columns, or steps, of one larger tensor: apart within each of its rows.
  const auto apart = [distance](std::int64_t pitch, std::int64_t mine, std::int64_t its) {
    if (pitch <= 0) return false;
    const std::int64_t at = (distance % pitch + pitch) % pitch;
    return at >= mine && at + its <= pitch;
  };
  if (x.row != y.row) return true;
  return !apart(x.row, x.steps, y.steps) &&
         !(x.step == y.step && x.row % std::max<std::int64_t>(x.step, 1) == 0 &&
           apart(x.step, x.width, y.width));
}

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
  // Of a dtype that products of activations in `x` read.
  void is_weight(const char* name, const ConstTensorView& view, const Shape& shape, DType x) const {
    check::present(where_, name, view);
    is(name, view, shape, detail::reads_weight(x, view.dtype()) ? view.dtype() : x);
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
  // An output that may be the same memory as an input may not be anything in between: with another
  // dtype or other pitches it would run over elements that are still to be read.
  void same_or_apart(const char* name, const ConstTensorView& out, const char* other,
                     const ConstTensorView& in) const {
    const bool same = out.data() == in.data() && out.dtype() == in.dtype() &&
                      out.shape() == in.shape() && out.row_pitch() == in.row_pitch() &&
                      out.step_pitch() == in.step_pitch();
    if (same || !overlap(out, in)) return;
    fail(name, fmt::format("the memory of {}, in its dtype and pitches, or other memory", other),
         "a part of it, or in another form");
  }
  void apart(const char* name, const ConstTensorView& out, const char* other,
             const ConstTensorView& in) const {
    if (overlap(out, in)) fail(name, fmt::format("other memory than {}", other), "a part of it");
  }
  void finite(const char* name, float value, float low) const {
    if (!(value >= low) || !std::isfinite(value)) {
      fail(name, fmt::format("a finite number of at least {}", low), fmt::format("{}", value));
    }
  }
  void divides(const char* name, std::int64_t value, std::int64_t total, const char* of) const {
    if (value < 1 || total % value != 0) {
      fail(name, fmt::format("a divisor of {} {}", total, of), fmt::format("{}", value));
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

// Of GatedRmsNorm and its gradient, which may have no norm.
inline void check_norm_weight(const Operands& operands, bool norm, const ConstTensorView& weight,
                              std::int64_t channels) {
  if (norm) return operands.is("weight", weight, {channels}, DType::f32);
  if (weight) operands.fail("weight", "none (there is no norm)", "a tensor");
}

// Of SelectiveScan::chunk_states; a chunk length that makes none is an error.
inline Shape chunk_states_shape(const Operands& operands, const ConstTensorView& x,
                                std::int64_t d_state, std::int64_t chunk_steps) {
  check::range(operands.where(), "chunk_steps", chunk_steps, 1, std::int64_t{1} << 30);
  const std::int64_t chunks = (x.dim(1) + chunk_steps - 1) / chunk_steps;
  return {x.dim(0), chunks, x.dim(2), d_state};
}

// Of SelectiveScan and its gradient: A_log or A. Returns d_state.
template <class Op>
std::int64_t check_decays(const Operands& operands, const Op& op) {
  if (op.A_log) {
    if (op.A) operands.fail("A", "none (there is A_log)", "a tensor");
  } else if (!op.A) {
    operands.fail("A_log", "a tensor, or A in its place", "none");
  }
  const char* name = op.A_log ? "A_log" : "A";
  const ConstTensorView& decays = detail::decays_of(op);
  operands.rank(name, decays, 2);
  const std::int64_t d_state = decays.dim(1);
  check::range(operands.where(), "d_state", d_state, 1, 256);
  operands.is(name, decays, {op.x.dim(2), d_state}, DType::f32);
  return d_state;
}

// Of Ssd and its gradient: x, dt, A_log, B, C, D, dt_bias and the options. Returns d_state.
template <class Op>
std::int64_t check_ssd(const Operands& operands, const Op& op) {
  const char* where = operands.where();
  operands.rank("x", op.x, 3);
  operands.is_storage("x", op.x, op.x.shape());
  operands.rank("A_log", op.A_log, 1);
  const std::int64_t heads = op.A_log.dim(0);
  check::range(where, "heads", heads, 1, std::int64_t{1} << 30);
  operands.is("A_log", op.A_log, {heads}, DType::f32);
  const std::int64_t head_dim = op.x.dim(2) / heads;
  check::range(where, "head_dim", head_dim, 1, 256);
  operands.is("x", op.x, with_channels(op.x, heads * head_dim), op.x.dtype());
  operands.is("dt", op.dt, with_channels(op.x, heads), op.x.dtype());
  operands.divides("groups", op.groups, heads, "heads");
  operands.rank("B", op.B, 3);
  const std::int64_t d_state = op.B.dim(2) / op.groups;
  check::range(where, "d_state", d_state, 1, 256);
  operands.is("B", op.B, with_channels(op.x, op.groups * d_state), op.x.dtype());
  operands.is("C", op.C, with_channels(op.x, op.groups * d_state), op.x.dtype());
  operands.optional("D", op.D, {heads}, DType::f32);
  operands.optional("dt_bias", op.dt_bias, {heads}, DType::f32);
  operands.finite("dt_low", op.dt_low, 0);
  if (!(op.dt_high >= op.dt_low)) {
    operands.fail("dt_high", fmt::format("at least dt_low, {}", op.dt_low),
                  fmt::format("{}", op.dt_high));
  }
  return d_state;
}

}  // namespace mamba
