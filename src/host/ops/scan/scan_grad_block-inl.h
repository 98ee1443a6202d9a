// What SelectiveScanGrad does with one block of channels over one segment of time: four states at a
// time, forward for the states and their decays, backward for the gradients. Both stay in the
// first-level cache. Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_SCAN_GRAD_BLOCK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SCAN_GRAD_BLOCK_INL_H_
#undef MAMBA_HOST_OPS_SCAN_GRAD_BLOCK_INL_H_
#else
#define MAMBA_HOST_OPS_SCAN_GRAD_BLOCK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include "host/ops/scan/scan_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

class ScanGradBlock {
 public:
  // The block's part of what is kept from segment to segment.
  struct Panels {
    const float* A;  // [d_state][block_channels], times log2(e)
    float* dh;       // [d_state][block_channels]: the gradient of the state handed on; in and out
    float* dA;       // [d_state][block_channels]: added to
    float* dBC;      // [steps][dB, dC]: added to
  };

  // Segments have at most `longest` steps. Takes memory() floats.
  ScanGradBlock(std::int64_t longest, std::int64_t d_state, float* memory) : d_state_(d_state) {
    const auto next = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    for (float** rows : {&delta, &x, &g, &y, &B_dh, &A_dh}) *rows = next(longest * block_channels);
    B = next(round_up(longest * d_state, line));
    C = next(round_up(longest * d_state, line));
    start = next(d_state * block_channels);
    h_ = next((longest + 1) * four_vectors);
    decay_ = next(longest * four_vectors);
    dB_ = next(longest * four_vectors);
    dC_ = next(longest * four_vectors);
  }

  // A multiple of cache lines.
  static std::int64_t memory(std::int64_t longest, std::int64_t d_state) {
    return 6 * longest * block_channels + 2 * round_up(longest * d_state, line) +
           d_state * block_channels + (4 * longest + 1) * four_vectors;
  }

  // The first `count` channels of a block. Grows: see scan_decay.
  template <bool Grows>
  void run(const Panels& panels, std::int64_t steps, std::int64_t count) {
    std::int64_t n = 0;
    for (; n + 4 <= d_state_; n += 4) sweep<4, Grows>(panels, steps, count, n);
    for (; n < d_state_; ++n) sweep<1, Grows>(panels, steps, count, n);
  }

  // Set before run().
  float *delta, *x, *g;  // [steps][block_channels]
  float *B, *C;          // [steps][d_state]
  float* start;          // [d_state][block_channels]: the segment's first state
  // Added to by run().
  float* y;            // [steps][block_channels]: before its gate
  float *B_dh, *A_dh;  // [steps][block_channels]: sums over states; A times log2(e)

 private:
  static constexpr std::int64_t line = 16;  // floats in a cache line
  // Not of this target's lanes: memory() is asked of another target than the one that runs.
  static constexpr std::int64_t four_vectors = 4 * 16;
  static_assert(max_lanes <= 16, "a vector of channels is at most 512 bits");

  // States n to n + kStates - 1.
  template <int kStates, bool Grows>
  void sweep(const Panels& panels, std::int64_t steps, std::int64_t count, std::int64_t n) {
    const std::int64_t vectors = steps * kStates * lanes_;
    std::fill_n(dB_, vectors, 0.0f);
    std::fill_n(dC_, vectors, 0.0f);
    for (std::int64_t c = 0; c < count; c += lanes_) {
      forward<kStates, Grows>(panels.A, steps, n, c);
      backward<kStates>(panels, steps, n, c);
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      float* dB = panels.dBC + s * 2 * d_state_ + n;
      float* dC = dB + d_state_;
      for (int k = 0; k < kStates; ++k) {
        const std::int64_t i = (s * kStates + k) * lanes_;
        dB[k] += hn::GetLane(hn::SumOfLanes(d_, hn::Load(d_, dB_ + i)));
        dC[k] += hn::GetLane(hn::SumOfLanes(d_, hn::Load(d_, dC_ + i)));
      }
    }
  }

  // h_[s] becomes the state before step s.
  template <int kStates, bool Grows>
  HWY_INLINE void forward(const float* A_panel, std::int64_t steps, std::int64_t n,
                          std::int64_t c) {
    F32Vec A[kStates], h[kStates];
    for (int k = 0; k < kStates; ++k) {
      A[k] = hn::Load(d_, A_panel + (n + k) * block_channels + c);
      h[k] = hn::Load(d_, start + (n + k) * block_channels + c);
      hn::Store(h[k], d_, h_ + k * lanes_);
    }
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t i = s * block_channels + c;
      const F32Vec delta_at = hn::Load(d_, delta + i);
      const F32Vec delta_x = hn::Mul(delta_at, hn::Load(d_, x + i));
      F32Vec y_at = hn::Load(d_, y + i);
      float* decays = decay_ + s * kStates * lanes_;
      float* states = h_ + (s + 1) * kStates * lanes_;
      for (int k = 0; k < kStates; ++k) {
        const F32Vec decay = scan_decay<Grows>(delta_at, A[k]);
        h[k] = hn::MulAdd(decay, h[k], hn::Mul(delta_x, hn::Set(d_, B[s * d_state_ + n + k])));
        y_at = hn::MulAdd(hn::Set(d_, C[s * d_state_ + n + k]), h[k], y_at);
        hn::Store(decay, d_, decays + k * lanes_);
        hn::Store(h[k], d_, states + k * lanes_);
      }
      hn::Store(y_at, d_, y + i);
    }
  }

  template <int kStates>
  HWY_INLINE void backward(const Panels& panels, std::int64_t steps, std::int64_t n,
                           std::int64_t c) {
    F32Vec A[kStates], dA[kStates], carry[kStates];
    for (int k = 0; k < kStates; ++k) {
      A[k] = hn::Load(d_, panels.A + (n + k) * block_channels + c);
      carry[k] = hn::Load(d_, panels.dh + (n + k) * block_channels + c);
      dA[k] = hn::Zero(d_);
    }
    for (std::int64_t s = steps - 1; s >= 0; --s) {
      const std::int64_t i = s * block_channels + c;
      const F32Vec g_at = hn::Load(d_, g + i);
      const F32Vec delta_at = hn::Load(d_, delta + i);
      const F32Vec delta_x = hn::Mul(delta_at, hn::Load(d_, x + i));
      F32Vec B_sum = hn::Load(d_, B_dh + i);
      F32Vec A_sum = hn::Load(d_, A_dh + i);
      for (int k = 0; k < kStates; ++k) {
        const std::int64_t at = (s * kStates + k) * lanes_;
        const F32Vec dh = hn::MulAdd(hn::Set(d_, C[s * d_state_ + n + k]), g_at, carry[k]);
        const F32Vec after = hn::Load(d_, h_ + at + kStates * lanes_);
        hn::Store(hn::MulAdd(after, g_at, hn::Load(d_, dC_ + at)), d_, dC_ + at);
        hn::Store(hn::MulAdd(delta_x, dh, hn::Load(d_, dB_ + at)), d_, dB_ + at);
        B_sum = hn::MulAdd(hn::Set(d_, B[s * d_state_ + n + k]), dh, B_sum);
        carry[k] = hn::Mul(hn::Load(d_, decay_ + at), dh);
        const F32Vec dexponent = hn::Mul(carry[k], hn::Load(d_, h_ + at));
        A_sum = hn::MulAdd(A[k], dexponent, A_sum);
        dA[k] = hn::MulAdd(delta_at, dexponent, dA[k]);
      }
      hn::Store(B_sum, d_, B_dh + i);
      hn::Store(A_sum, d_, A_dh + i);
    }
    for (int k = 0; k < kStates; ++k) {
      float* sum = panels.dA + (n + k) * block_channels + c;
      hn::Store(carry[k], d_, panels.dh + (n + k) * block_channels + c);
      hn::Store(hn::Add(hn::Load(d_, sum), dA[k]), d_, sum);
    }
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const std::int64_t d_state_;
  float *h_, *decay_, *dB_, *dC_;  // [steps][4 states][lanes]; h_ one step more
};

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
