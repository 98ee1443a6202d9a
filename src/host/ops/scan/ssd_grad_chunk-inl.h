// A chunk of SsdGrad, for some heads of a group. With S the state before the chunk, G the gradient
// of that after it, L[i, j] the decay from step j to step i, L[i] that from the chunk's start and
// R[j] that to its end:
//   Z[i, j] = (dy[i] . x[j]) L[i, j] delta[j]               where j <= i
//   K[i, j] = L[i, j] (C[i] . B[j])
//   dC[i]  += sum_j Z[i, j] B[j] + L[i] S^T dy[i]
//   dB[j]  += sum_i Z[i, j] C[i] + delta[j] R[j] G^T x[j]
//   v[j]    = sum_i K[i, j] dy[i] + R[j] G B[j]             (dh[j] B[j])
//   dx[j]   = delta[j] v[j] + D dy[j]
//   G'      = L[last] G + sum_i L[i] dy[i] C[i]^T
// What the decay of step t multiplies is h before it as a sum over the steps j < t and S, and dh
// after it as one over the steps i >= t and G; so with W[i, j] = Z[i, j] (C[i] . B[j])
//   dlog_a[t] = sum over i >= t, j < t of W[i, j] + sum over i >= t of L[i] dy[i] . S C[i]
//             + sum over j < t of delta[j] R[j] x[j] . G B[j] + L[last] <G, S>
// none of which is a difference. States and their gradients are [channel][state] here, as they are
// in memory. Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_SSD_GRAD_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SSD_GRAD_CHUNK_INL_H_
#undef MAMBA_HOST_OPS_SSD_GRAD_CHUNK_INL_H_
#else
#define MAMBA_HOST_OPS_SSD_GRAD_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include <mamba/grad_ops.hpp>

#include "host/ops/scan/ssd_head-inl.h"
#include "host/ops/scan/ssd_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// A dot product of rows that are zero, at least in one of the two, up to a whole vector.
HWY_INLINE float dot(const float* a, const float* b, std::int64_t count) {
  const F32 d;
  F32Vec sum = hn::Zero(d);
  for (std::int64_t i = 0; i < count; i += vector_channels()) {
    sum = hn::MulAdd(load(a + i), load(b + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// to = scale from, and what is beside it up to a whole vector.
HWY_INLINE void scale_row(float scale, const float* from, std::int64_t count, float* to) {
  const F32 d;
  for (std::int64_t i = 0; i < count; i += vector_channels()) {
    store(hn::Mul(hn::Set(d, scale), load(from + i)), to + i);
  }
}

// What a head sums over all of its steps.
struct SsdGradHeadSums {
  float dA_log = 0, dD = 0, ddt_bias = 0;
};

template <class T>
class SsdGradChunk {
 public:
  SsdGradChunk(const SsdGrad& op, float* memory) : op_(op), sizes_(op) {
    const auto next = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    for (float** rows : {&B_, &C_, &x_, &dy_, &v_, &state_dy_, &weighted_, &dB_, &dC_}) {
      *rows = next(ssd_chunk * wide);
    }
    for (float** rows : {&CB_, &K_, &W_, &Z_}) *rows = next(ssd_chunk * narrow);
    B_by_state_ = next(sizes_.d_state * narrow);
    x_by_channel_ = next(sizes_.head_dim * narrow);
    G_by_state_ = next(sizes_.d_state * odd_pitch(sizes_.head_dim));
  }

  // In floats; they are zeros to begin with.
  static std::int64_t memory(const SsdSizes& sizes) {
    return 9 * ssd_chunk * wide + 4 * ssd_chunk * narrow +
           (sizes.d_state + sizes.head_dim) * narrow + sizes.d_state * odd_pitch(sizes.head_dim);
  }

  // to = the state after steps t .. t + steps, of `from` or zeros before them (nullptr).
  void advance(std::int64_t b, std::int64_t t, std::int64_t steps, std::int64_t head,
               const float* from, float* to) {
    head_.load_from<T>(op_, b, t, steps, head);
    decays_.walk(head_, steps, [](std::int64_t) {});
    load_steps<T>(op_.x, b, t, steps, head * sizes_.head_dim, sizes_.head_dim, x_, wide);
    for (std::int64_t j = 0; j < steps; ++j) weigh(x_, j, head_.delta[j] * decays_.to_end[j]);
    if (from != nullptr) std::copy_n(from, sizes_.head_dim * state_pitch(), to);
    add_outer(B_, steps, from != nullptr, to);
  }
  void load_B(std::int64_t b, std::int64_t t, std::int64_t steps, std::int64_t group) {
    load_steps<T>(op_.B, b, t, steps, group * sizes_.d_state, sizes_.d_state, B_, wide);
  }

  // What the heads of a group share; then each of them, then put().
  void begin(std::int64_t b, std::int64_t t, std::int64_t steps, std::int64_t group) {
    b_ = b;
    t_ = t;
    steps_ = steps;
    load_B(b, t, steps, group);
    load_steps<T>(op_.C, b, t, steps, group * sizes_.d_state, sizes_.d_state, C_, wide);
    transpose(B_, wide, B_by_state_, narrow, steps, sizes_.d_state);
    Product CB = product(C_, B_by_state_, narrow, CB_, narrow, steps, sizes_.d_state);
    CB.lower = true;
    multiply<ByRow<wide>>(CB);
    std::fill_n(Z_, steps * narrow, 0.0f);
    for (float* rows : {dB_, dC_}) std::fill_n(rows, steps * wide, 0.0f);
  }

  // S: nullptr for zeros. G as above, of which nothing is read if `G_is_zero`; it becomes G' where
  // `goes_on`.
  void head(std::int64_t head, const float* S, float* G, bool G_is_zero, bool goes_on,
            SsdGradHeadSums& sums) {
    const std::int64_t channel = head * sizes_.head_dim;
    head_.load_from<T>(op_, b_, t_, steps_, head);
    load_steps<T>(op_.x, b_, t_, steps_, channel, sizes_.head_dim, x_, wide);
    load_steps<T>(op_.dy, b_, t_, steps_, channel, sizes_.head_dim, dy_, wide);
    std::fill_n(dlog_a_, steps_, 0.0f);
    within();
    if (S != nullptr) from_state(S);
    if (!G_is_zero) to_gradient(G);
    if (S != nullptr && !G_is_zero) {
      const float both = decays_.from_start[steps_ - 1] * product_of_states(G, S);
      for (std::int64_t i = 0; i < steps_; ++i) dlog_a_[i] += both;
    }
    Product v = product(K_, dy_, wide, v_, wide, sizes_.head_dim, steps_);
    v.a_pitch = narrow;
    v.add = !G_is_zero;
    multiply<ByColumn, Over::from_row>(v);
    finish(head, sums);
    if (!goes_on) return;
    for (std::int64_t i = 0; i < steps_; ++i) weigh(dy_, i, decays_.from_start[i]);
    add_outer(C_, steps_, !G_is_zero, G);
  }

  // [steps][dB, dC]
  void put(float* to) {
    Product dC = product(Z_, B_, wide, dC_, wide, sizes_.d_state, steps_);
    dC.add = true;
    multiply<ByRow<narrow>, Over::up_to_row>(dC);
    Product dB = product(Z_, C_, wide, dB_, wide, sizes_.d_state, steps_);
    dB.a_pitch = narrow;
    dB.add = true;
    multiply<ByColumn, Over::from_row>(dB);
    for (std::int64_t i = 0; i < steps_; ++i) {
      to = std::copy_n(dB_ + i * wide, sizes_.d_state, to);
      to = std::copy_n(dC_ + i * wide, sizes_.d_state, to);
    }
  }

  std::int64_t state_pitch() const { return odd_pitch(sizes_.d_state); }
  static std::int64_t odd_pitch(std::int64_t columns) { return round_up(columns, 16) | 16; }

 private:
  Product product(const float* a, const float* b, std::int64_t b_pitch, float* sums,
                  std::int64_t pitch, std::int64_t columns, std::int64_t depth) const {
    Product p;
    p.a = a;
    p.b = b;
    p.b_pitch = b_pitch;
    p.sums = sums;
    p.pitch = pitch;
    p.rows = steps_;
    p.columns = columns;
    p.depth = depth;
    return p;
  }

  void weigh(const float* rows, std::int64_t i, float weight) {
    scale_row(weight, rows + i * wide, sizes_.head_dim, weighted_ + i * wide);
  }

  // state[p][n] = sum_i weighted[i][p] rows[i][n], added to what has decayed if `add`.
  void add_outer(const float* rows, std::int64_t steps, bool add, float* state) {
    Product next = product(weighted_, rows, wide, state, state_pitch(), sizes_.d_state, steps);
    next.a_pitch = wide;
    next.rows = sizes_.head_dim;
    next.add = add;
    next.scale = decays_.from_start[steps - 1];
    multiply<ByColumn>(next);
  }

  // Z and K, and what pairs of steps within the chunk give the decays between.
  void within() {
    transpose(x_, wide, x_by_channel_, narrow, steps_, sizes_.head_dim);
    Product dyx = product(dy_, x_by_channel_, narrow, W_, narrow, steps_, sizes_.head_dim);
    dyx.lower = true;
    multiply<ByRow<wide>>(dyx);
    decays_.walk(head_, steps_, [&](std::int64_t i) HWY_ATTR {
      for (std::int64_t j = 0; j <= i; j += vector_channels()) {
        const std::int64_t at = i * narrow + j;
        const F32Vec decay = decays_.row(j), CB = load(CB_ + at);
        const F32Vec Z = hn::Mul(load(W_ + at), hn::Mul(decay, load(head_.delta + j)));
        store(hn::Mul(decay, CB), K_ + at);
        store(hn::Add(load(Z_ + at), Z), Z_ + at);
        store(hn::Mul(Z, CB), W_ + at);
      }
    });
    // below[j]: the sum of W[i, j] over the steps from the one at hand on.
    float below[narrow] = {};
    for (std::int64_t i = steps_ - 1; i > 0; --i) {
      F32Vec sum = hn::Zero(d_);
      for (std::int64_t j = 0; j < i; j += vector_channels()) {
        const auto before = hn::FirstN(d_, static_cast<std::size_t>(i - j));
        const F32Vec W = hn::IfThenElseZero(before, load(W_ + i * narrow + j));
        const F32Vec all = hn::Add(load(below + j), W);
        store(all, below + j);
        sum = hn::Add(sum, hn::IfThenElseZero(before, all));
      }
      dlog_a_[i] = hn::GetLane(hn::SumOfLanes(d_, sum));
    }
  }

  void from_state(const float* S) {
    multiply<ByRow<wide>>(
        product(dy_, S, state_pitch(), state_dy_, wide, sizes_.d_state, sizes_.head_dim));
    float sum = 0;
    for (std::int64_t i = steps_ - 1; i >= 0; --i) {
      const float* from = state_dy_ + i * wide;
      const float decay = decays_.from_start[i];
      for (std::int64_t n = 0; n < sizes_.d_state; n += vector_channels()) {
        float* to = dC_ + i * wide + n;
        store(hn::MulAdd(hn::Set(d_, decay), load(from + n), load(to)), to);
      }
      sum += decay * dot(C_ + i * wide, from, sizes_.d_state);
      dlog_a_[i] += sum;
    }
  }

  void to_gradient(const float* G) {
    const std::int64_t pitch = odd_pitch(sizes_.head_dim);
    transpose(G, state_pitch(), G_by_state_, pitch, sizes_.head_dim, sizes_.d_state);
    multiply<ByRow<wide>>(
        product(B_, G_by_state_, pitch, v_, wide, sizes_.head_dim, sizes_.d_state));
    float sum = 0;
    for (std::int64_t j = 0; j < steps_; ++j) {
      float* v = v_ + j * wide;
      dlog_a_[j] += sum;
      scale_row(decays_.to_end[j], v, sizes_.head_dim, v);
      sum += head_.delta[j] * dot(x_ + j * wide, v, sizes_.head_dim);
      weigh(x_, j, head_.delta[j] * decays_.to_end[j]);
    }
    Product dB = product(weighted_, G, state_pitch(), dB_, wide, sizes_.d_state, sizes_.head_dim);
    dB.add = true;
    multiply<ByRow<wide>>(dB);
  }

  float product_of_states(const float* a, const float* b) const {
    float sum = 0;
    for (std::int64_t p = 0; p < sizes_.head_dim; ++p) {
      sum += dot(a + p * state_pitch(), b + p * state_pitch(), sizes_.d_state);
    }
    return sum;
  }

  // v becomes dx.
  void finish(std::int64_t head, SsdGradHeadSums& sums) {
    const float D = op_.D ? op_.D.data<float>()[head] : 0;
    const std::int64_t lanes = vector_channels();
    float ddelta[narrow] = {}, dA = 0;
    for (std::int64_t j = 0; j < steps_; ++j) {
      float *v = v_ + j * wide, *dy = dy_ + j * wide;
      ddelta[j] = dot(x_ + j * wide, v, sizes_.head_dim) + head_.A * dlog_a_[j];
      dA += head_.delta[j] * dlog_a_[j];
      if (op_.dD) sums.dD += dot(dy, x_ + j * wide, sizes_.head_dim);
      const F32Vec delta = hn::Set(d_, head_.delta[j]);
      for (std::int64_t p = 0; p < sizes_.head_dim; p += lanes) {
        const F32Vec direct = hn::Mul(delta, load(v + p));
        store(op_.D ? hn::MulAdd(hn::Set(d_, D), load(dy + p), direct) : direct, v + p);
      }
    }
    sums.dA_log += head_.A * dA;
    for (std::int64_t j = 0; j < steps_; j += lanes) {
      const F32Vec delta = load(head_.delta + j);
      const auto limited =
          hn::Or(hn::Le(delta, hn::Set(d_, op_.dt_low)), hn::Ge(delta, hn::Set(d_, op_.dt_high)));
      F32Vec ddt = load(ddelta + j);
      if (op_.softplus) ddt = hn::Mul(ddt, Sigmoid<F32>(d_, load(head_.raw + j)).value);
      store(hn::IfThenElse(limited, hn::Zero(d_), ddt), ddelta + j);
    }
    T* ddt = op_.ddt.data<T>() + b_ * op_.ddt.row_pitch() + t_ * op_.ddt.step_pitch() + head;
    for (std::int64_t j = 0; j < steps_; ++j) {
      ddt[j * op_.ddt.step_pitch()] = static_cast<T>(ddelta[j]);
      sums.ddt_bias += ddelta[j];
    }
    store_steps<T>(v_, wide, op_.dx, b_, t_, steps_, head * sizes_.head_dim, sizes_.head_dim);
  }

  static constexpr F32 d_{};

  const SsdGrad& op_;
  const SsdSizes sizes_;
  HeadSteps head_;
  ChunkDecays decays_;
  float *B_, *C_, *state_dy_, *dB_, *dC_;  // [steps][d_state]
  float *x_, *dy_, *v_, *weighted_;        // [steps][head_dim]
  float *CB_, *K_, *W_, *Z_;               // [steps][steps]; W is dy . x first, Z of all heads
  float *B_by_state_, *x_by_channel_;      // [d_state or head_dim][steps]
  float* G_by_state_;                      // [d_state][head_dim]
  float dlog_a_[narrow];
  std::int64_t b_ = 0, t_ = 0, steps_ = 0;
};

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
