// What the scan and its gradient hold of a panel of channels (sequence.hpp): per channel and state,
// kept as [block][state][channel of the block], so that the vector lanes are channels. Compiled
// once for every Highway target.
#if defined(MAMBA_HOST_OPS_SCAN_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SCAN_PANEL_INL_H_
#undef MAMBA_HOST_OPS_SCAN_PANEL_INL_H_
#else
#define MAMBA_HOST_OPS_SCAN_PANEL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "detail/scan_decays.hpp"
#include "host/ops/channels-inl.h"
#include "host/ops/sequence.hpp"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What is in the first-level cache at a time. A row of a block must be at least four cache lines:
// with two, the hardware fetches ahead along the row in vain, and f32 [1, 512, 1536] took 7.9 ns
// per channel and token instead of 4.6 (one thread, AVX-512).
constexpr std::int64_t block_channels = 128;

class Panel {
 public:
  Panel(std::int64_t d_state, std::int64_t panel_channels)
      : d_state_(d_state), size_(d_state * round_up(panel_channels, block_channels)) {}

  std::int64_t size() const { return size_; }  // in floats

  // [channel][state] in memory, `pitch` apart, to and from a panel. Lanes without a channel are
  // zeros.
  void gather(const float* from, std::int64_t pitch, std::int64_t channels, float* to) const {
    for (std::int64_t c = 0; c < channels; c += block_channels) {
      const std::int64_t count = std::min(block_channels, channels - c);
      if (count < block_channels) std::fill_n(to + c * d_state_, d_state_ * block_channels, 0.0f);
      transpose(from + c * pitch, pitch, to + c * d_state_, block_channels, count, d_state_);
    }
  }
  void scatter(const float* from, std::int64_t channels, float* to) const {
    for (std::int64_t c = 0; c < channels; c += block_channels) {
      const std::int64_t count = std::min(block_channels, channels - c);
      transpose(from + c * d_state_, block_channels, to + c * d_state_, d_state_, d_state_, count);
    }
  }
  void clear(float* panel, std::int64_t channels) const {
    std::fill_n(panel, d_state_ * round_up(channels, block_channels), 0.0f);
  }

  // A of a SelectiveScan or its gradient, times log2(e) so that the decay is a power of two;
  // finite, so that a delta of 0 keeps the state; a NaN as exp2_nonpositive wants it.
  template <class Op>
  void gather_A(const Op& op, std::int64_t channel, std::int64_t channels, float* A) const {
    const F32 d;
    const ConstTensorView& decays = detail::decays_of(op);
    const std::int64_t pitch = decays.row_pitch();
    gather(decays.template data<float>() + channel * pitch, pitch, channels, A);
    constexpr auto most = std::numeric_limits<float>::max();
    const auto nan = hn::Set(d, std::numeric_limits<float>::quiet_NaN());
    const std::int64_t size = d_state_ * round_up(channels, block_channels);
    for (std::int64_t i = 0; i < size; i += vector_channels()) {
      const F32Vec given = hn::Load(d, A + i);
      const F32Vec value = op.A_log ? hn::Mul(exp(d, given), hn::Set(d, -log2_e))
                                    : at_most(d, hn::Mul(given, hn::Set(d, log2_e)), most);
      hn::Store(hn::IfThenElse(hn::IsNaN(given), nan, at_least(d, value, -most)), d, A + i);
    }
  }

 private:
  std::int64_t d_state_;
  std::int64_t size_;
};

// exp(delta A) as a power of two. Grows: delta A may be above zero (detail::may_grow).
template <bool Grows>
HWY_INLINE F32Vec scan_decay(F32Vec delta, F32Vec A) {
  const F32 d;
  const F32Vec power = hn::Mul(delta, A);
  if constexpr (Grows) {
    return exp2(d, power);
  } else {
    return exp2_nonpositive(d, power);
  }
}

// Rows t .. t + steps of batch row b of [batch, time, d_state], as dense f32.
template <class T>
void load_rows(const ConstTensorView& view, std::int64_t b, std::int64_t t, std::int64_t steps,
               float* to) {
  const std::int64_t width = view.dim(2);
  for (std::int64_t s = 0; s < steps; ++s) {
    const T* from = view.data<T>() + b * view.row_pitch() + (t + s) * view.step_pitch();
    for (std::int64_t n = 0; n < width; n += vector_channels()) {
      store_channels(load_channels(from + n, width - n), to + s * width + n, width - n);
    }
  }
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
