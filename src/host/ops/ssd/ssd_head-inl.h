// What Ssd and its gradient know of a head's steps before any state: delta, its exponents, and rows
// of operands as f32. Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_SSD_HEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SSD_HEAD_INL_H_
#undef MAMBA_HOST_OPS_SSD_HEAD_INL_H_
#else
#define MAMBA_HOST_OPS_SSD_HEAD_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "host/ops/channels-inl.h"
#include "host/ops/ssd/ssd_items.hpp"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// Rows of `columns` elements, `from_pitch` apart, as f32; zeros up to the end of the last vector.
template <class T>
void load_block(const T* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t columns,
                float* to, std::int64_t to_pitch) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; j += vector_channels()) {
      store(load_channels(from + i * from_pitch + j, columns - j), to + i * to_pitch + j);
    }
  }
}

// Steps t .. t + steps of some columns of [batch, time, ...].
template <class T>
void load_steps(const ConstTensorView& view, std::int64_t b, std::int64_t t, std::int64_t steps,
                std::int64_t column, std::int64_t columns, float* to, std::int64_t to_pitch) {
  const T* from = view.data<T>() + b * view.row_pitch() + t * view.step_pitch() + column;
  load_block(from, view.step_pitch(), steps, columns, to, to_pitch);
}

template <class T>
void store_steps(const float* from, std::int64_t from_pitch, const TensorView& view, std::int64_t b,
                 std::int64_t t, std::int64_t steps, std::int64_t column, std::int64_t columns) {
  T* to = view.data<T>() + b * view.row_pitch() + t * view.step_pitch() + column;
  for (std::int64_t i = 0; i < steps; ++i) {
    for (std::int64_t j = 0; j < columns; j += vector_channels()) {
      store_channels(load(from + i * from_pitch + j), to + i * view.step_pitch() + j, columns - j);
    }
  }
}

// At most ssd_chunk steps of one head.
struct HeadSteps {
  float raw[narrow];  // dt + dt_bias
  float delta[narrow];
  float exponent[narrow];  // delta A, times log2(e) so that the decay is a power of two
  float A = 0;             // -exp(A_log), finite, so that a delta of 0 keeps the state

  // NaNs of the exponents are as exp2_nonpositive wants them.
  template <class T, class Op>
  void load_from(const Op& op, std::int64_t b, std::int64_t t, std::int64_t steps,
                 std::int64_t head) {
    const F32 d;
    const T* dt = op.dt.template data<T>() + b * op.dt.row_pitch() + t * op.dt.step_pitch() + head;
    const float bias = op.dt_bias ? op.dt_bias.template data<float>()[head] : 0;
    for (std::int64_t i = 0; i < steps; ++i) {
      raw[i] = static_cast<float>(dt[i * op.dt.step_pitch()]) + bias;
    }
    const std::int64_t lanes = vector_channels();
    std::fill(raw + steps, raw + round_up(steps, lanes), 0.0f);
    const float A_log = op.A_log.template data<float>()[head];
    A = std::max(hn::GetLane(hn::Neg(exp(d, hn::Set(d, A_log)))),
                 std::numeric_limits<float>::lowest() / 2);
    if (A_log != A_log) A = std::numeric_limits<float>::quiet_NaN();
    const F32Vec rate = hn::Set(d, A * log2_e);
    const F32Vec nan = hn::Set(d, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t i = 0; i < steps; i += lanes) {
      const F32Vec v = load(raw + i);
      const F32Vec step =
          at_most(d, at_least(d, op.softplus ? softplus(d, v) : v, op.dt_low), op.dt_high);
      const F32Vec power = hn::Mul(step, rate);
      store(step, delta + i);
      store(hn::IfThenElse(hn::IsNaN(power), nan, power), exponent + i);
    }
  }
};

// The decays between the steps of a chunk. An exponent from step j to step i is the sum of those
// between, never a difference of sums from the chunk's start, which would lose what a long chunk's
// sum has no digits for.
class ChunkDecays {
 public:
  float from_start[narrow];  // by which the chunk's first state has decayed after each step
  float to_end[narrow];      // by which each step's input has decayed at the end

  // f(i) for each step in order, meanwhile row(i, vector of j) is the decay from step j <= i to i.
  template <class F>
  HWY_INLINE void walk(const HeadSteps& head, std::int64_t steps, const F& f) {
    const F32 d;
    const std::int64_t lanes = vector_channels();
    float sum = 0;
    std::fill_n(exponents_, narrow, 0.0f);
    std::fill_n(from_start, round_up(steps, lanes), 0.0f);
    for (std::int64_t i = 0; i < steps; ++i) {
      const F32Vec add = hn::Set(d, head.exponent[i]);
      for (std::int64_t j = 0; j < i; j += lanes) {
        store(hn::Add(load(exponents_ + j), add), exponents_ + j);
      }
      exponents_[i] = 0;
      sum += head.exponent[i];
      from_start[i] = sum;
      f(i);
    }
    for (std::int64_t j = 0; j < steps; j += lanes) {
      store(exp2_nonpositive(d, load(from_start + j)), from_start + j);
      store(row(j), to_end + j);
    }
  }
  HWY_INLINE F32Vec row(std::int64_t j) const {
    const F32 d;
    return exp2_nonpositive(d, load(exponents_ + j));
  }

 private:
  float exponents_[narrow];  // of the step at hand
};

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
