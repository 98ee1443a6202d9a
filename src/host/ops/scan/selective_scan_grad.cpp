// SelectiveScanGrad on the CPU. The vector lanes are channels, as in selective_scan.cpp. Time is
// walked from the last chunk to the first, each cut at its resets into segments whose first state
// is known (the chunk's, or zero). Per segment and block of channels:
//
//   prepare   delta, x and g = dy silu(z) of every step
//   run       over the states, forward and back (scan_grad_block-inl.h)
//   finish    the gradients of what belongs to a channel and step
//
// dB and dC are sums over channels: over the vectors of a block lane by lane, over the lanes, over
// the blocks of the panel, and at last over panels in their order. dA_log or dA, dD and ddt_bias
// are kept for each batch row and added in the order of the rows.
#include <algorithm>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/scan/scan_grad_sums.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/scan/selective_scan_grad.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/scan/scan_grad_block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

constexpr float ln_2 = 0x1.62e43p-1f;

// What one thread does: a run of items, with buffers for one.
template <class T>
class ScanGrad {
 public:
  ScanGrad(const SelectiveScanGrad& op, const Items& items, const ScanGradSums& sums, float* memory)
      : op_(op),
        items_(items),
        sums_(sums),
        time_(op.x.dim(1)),
        d_state_(detail::d_state_of(op)),
        panel_(d_state_, items.panel_channels),
        block_(longest_segment(op), d_state_, memory) {
    A_ = memory + ScanGradBlock::memory(longest_segment(op), d_state_);
    dh_ = A_ + panel_.size();
    dA_ = dh_ + panel_.size();
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(const SelectiveScanGrad& op, std::int64_t panel_channels) {
    const std::int64_t d_state = detail::d_state_of(op);
    return ScanGradBlock::memory(longest_segment(op), d_state) +
           3 * Panel(d_state, panel_channels).size();
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items_.row(item);
      channel_ = items_.channel(item);
      channels_ = items_.channels_of(item);
      dB_out_ = sums_.dB(item, 0);
      if (item == first || b_ == 0) panel_.gather_A(op_, channel_, channels_, A_);
      panel_.clear(dA_, channels_);
      take_final_gradient();
      sequence();
      leave_initial_gradient();
      leave_dA();
    }
  }

 private:
  static std::int64_t longest_segment(const SelectiveScanGrad& op) {
    return std::max<std::int64_t>(1, std::min(op.chunk_steps, op.x.dim(1)));
  }

  std::int64_t state_offset() const { return (b_ * op_.x.dim(2) + channel_) * d_state_; }

  void take_final_gradient() {
    if (!op_.dfinal_state) return panel_.clear(dh_, channels_);
    panel_.gather(op_.dfinal_state.data<float>() + state_offset(), d_state_, channels_, dh_);
  }
  void leave_initial_gradient() const {
    if (!op_.dinitial_state) return;
    panel_.scatter(dh_, channels_, op_.dinitial_state.data<float>() + state_offset());
  }
  // For A_log times dA/dA_log, which is A.
  void leave_dA() {
    if (!op_.dA_log && !op_.dA) return;
    const std::int64_t size = d_state_ * round_up(channels_, block_channels);
    for (std::int64_t i = 0; op_.dA_log && i < size; i += lanes_) {
      const F32Vec A = hn::Mul(hn::Load(d_, A_ + i), hn::Set(d_, ln_2));
      hn::Store(hn::Mul(hn::Load(d_, dA_ + i), A), d_, dA_ + i);
    }
    panel_.scatter(dA_, channels_, sums_.dA(b_) + channel_ * d_state_);
  }

  // dh_ is the gradient of the state that a segment hands on: its decay times dh, or what came from
  // behind the last step. A segment that began with a reset hands nothing on.
  void sequence() {
    const Resets resets(op_.reset, b_);
    const std::int64_t chunks = op_.chunk_states.dim(1);
    for (std::int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const std::int64_t first = chunk * op_.chunk_steps;
      std::int64_t end = std::min(time_, first + op_.chunk_steps);
      for (std::int64_t t = end - 1; t >= first; --t) {
        if (t > first && !resets.at(t)) continue;
        segment(chunk, t, end - t, resets.at(t));
        if (resets.at(t)) panel_.clear(dh_, channels_);
        end = t;
      }
    }
  }

  void segment(std::int64_t chunk, std::int64_t t, std::int64_t steps, bool from_zero) {
    load_rows<T>(op_.B, b_, t, steps, block_.B);
    load_rows<T>(op_.C, b_, t, steps, block_.C);
    const Panel one(d_state_, block_channels);
    const bool grows = detail::may_grow(op_);
    for (std::int64_t c = 0; c < channels_; c += block_channels) {
      const std::int64_t count = std::min(block_channels, channels_ - c);
      one.clear(block_.start, count);
      if (!from_zero) {
        const std::int64_t row = b_ * op_.chunk_states.dim(1) + chunk;
        const std::int64_t channel = row * op_.x.dim(2) + channel_ + c;
        one.gather(op_.chunk_states.data<float>() + channel * d_state_, d_state_, count,
                   block_.start);
      }
      prepare(t, steps, c, count);
      const std::int64_t offset = c * d_state_;
      const ScanGradBlock::Panels panels{A_ + offset, dh_ + offset, dA_ + offset,
                                         dB_out_ + t * 2 * d_state_};
      grows ? block_.run<true>(panels, steps, count) : block_.run<false>(panels, steps, count);
      finish(t, steps, c, count);
    }
  }

  // dt plus its bias, before softplus.
  HWY_INLINE F32Vec load_dt(const T* dt, const float* bias, std::int64_t c,
                            std::int64_t left) const {
    const F32Vec v = load_channels(dt + c, left);
    return bias == nullptr ? v : hn::Add(v, load_channels(bias + c, left));
  }

  template <class U>
  static const U* at(const ConstTensorView& view, std::int64_t channel) {
    return view ? view.data<U>() + channel : nullptr;
  }
  const T* row(const ConstTensorView& view, std::int64_t t, std::int64_t first) const {
    if (!view) return nullptr;
    return view.data<T>() + b_ * view.row_pitch() + t * view.step_pitch() + channel_ + first;
  }
  T* row(const TensorView& view, std::int64_t t, std::int64_t first) const {
    return const_cast<T*>(row(static_cast<const ConstTensorView&>(view), t, first));
  }

  // `count` channels from the panel's channel `first` on.
  void prepare(std::int64_t t, std::int64_t steps, std::int64_t first, std::int64_t count) {
    const auto* bias = at<float>(op_.dt_bias, channel_ + first);
    const auto* D = at<float>(op_.D, channel_ + first);
    for (std::int64_t s = 0; s < steps; ++s) {
      const T* x = row(op_.x, t + s, first);
      const T* dt = row(op_.dt, t + s, first);
      const T* z = row(op_.z, t + s, first);
      const T* dy = row(op_.dy, t + s, first);
      for (std::int64_t c = 0; c < count; c += lanes_) {
        const std::int64_t left = count - c;
        const std::int64_t i = s * block_channels + c;
        const F32Vec u = load_channels(x + c, left);
        F32Vec g = load_channels(dy + c, left);
        if (z != nullptr) g = hn::Mul(g, silu(d_, load_channels(z + c, left)));
        const F32Vec v = load_dt(dt, bias, c, left);
        hn::Store(op_.softplus ? softplus(d_, v) : v, d_, block_.delta + i);
        hn::Store(u, d_, block_.x + i);
        hn::Store(g, d_, block_.g + i);
        hn::Store(D == nullptr ? hn::Zero(d_) : hn::Mul(load_channels(D + c, left), u), d_,
                  block_.y + i);
        hn::Store(hn::Zero(d_), d_, block_.B_dh + i);
        hn::Store(hn::Zero(d_), d_, block_.A_dh + i);
      }
    }
  }

  void finish(std::int64_t t, std::int64_t steps, std::int64_t first, std::int64_t count) {
    const auto* bias = at<float>(op_.dt_bias, channel_ + first);
    const auto* D = at<float>(op_.D, channel_ + first);
    for (std::int64_t c = 0; c < count; c += lanes_) {
      const std::int64_t left = count - c;
      F32Vec dD = hn::Zero(d_), dbias = hn::Zero(d_);
      for (std::int64_t s = 0; s < steps; ++s) {
        const std::int64_t i = s * block_channels + c;
        const F32Vec x = hn::Load(d_, block_.x + i), g = hn::Load(d_, block_.g + i);
        const F32Vec B_dh = hn::Load(d_, block_.B_dh + i);
        const F32Vec A_dh = hn::Mul(hn::Load(d_, block_.A_dh + i), hn::Set(d_, ln_2));
        F32Vec ddt = hn::MulAdd(x, B_dh, A_dh);
        if (op_.softplus) {
          const F32Vec v = load_dt(row(op_.dt, t + s, first), bias, c, left);
          ddt = hn::Mul(ddt, Sigmoid<F32>(d_, v).value);
        }
        F32Vec dx = hn::Mul(hn::Load(d_, block_.delta + i), B_dh);
        if (D != nullptr) dx = hn::MulAdd(load_channels(D + c, left), g, dx);
        dD = hn::MulAdd(g, x, dD);
        dbias = hn::Add(dbias, ddt);
        store_channels(dx, row(op_.dx, t + s, first) + c, left);
        store_channels(ddt, row(op_.ddt, t + s, first) + c, left);
        finish_y(t + s, first, c, left, hn::Load(d_, block_.y + i));
      }
      add_to(sums_.dD(b_), first + c, left, dD);
      add_to(sums_.ddt_bias(b_), first + c, left, dbias);
    }
  }

  // y before its gate gives dz, and the forward run's y again.
  HWY_INLINE void finish_y(std::int64_t t, std::int64_t first, std::int64_t c, std::int64_t left,
                           F32Vec y) const {
    if (op_.z) {
      const F32Vec z = load_channels(row(op_.z, t, first) + c, left);
      const F32Vec dy = load_channels(row(op_.dy, t, first) + c, left);
      store_channels(hn::Mul(hn::Mul(dy, y), silu_slope(d_, z)), row(op_.dz, t, first) + c, left);
      y = hn::Mul(y, silu(d_, z));
    }
    if (op_.y) store_channels(y, row(op_.y, t, first) + c, left);
  }

  HWY_INLINE void add_to(float* sums, std::int64_t c, std::int64_t left, F32Vec v) const {
    float* to = sums + channel_ + c;
    store_channels(hn::Add(load_channels(to, left), v), to, left);
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const SelectiveScanGrad& op_;
  const Items items_;
  const ScanGradSums& sums_;
  const std::int64_t time_, d_state_;
  const Panel panel_;
  ScanGradBlock block_;
  float *A_, *dh_, *dA_;                             // panels
  float* dB_out_ = nullptr;                          // the item's [time][dB, dC]
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0;  // the item at hand
};

void scan_grad_items(const SelectiveScanGrad& op, const Items& items, const ScanGradSums& sums,
                     std::int64_t first, std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    ScanGrad<typename decltype(type)::type>(op, items, sums, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(scan_grad_items);

void run(const SelectiveScanGrad& op, Stream& stream) {
  const std::int64_t d_state = detail::d_state_of(op);
  const std::int64_t batch = op.x.dim(0);
  const std::int64_t channels = op.x.dim(2);
  const std::int64_t work = op.x.count() * d_state;
  const int threads = useful_threads(stream, 3 * work, 1 << 14);
  Scratch scratch(stream);
  if (batch == 0 || channels == 0) {
    ScanGradSums(op, {1, 1, panel_unit}, scratch).finish(stream, 1);
    return;
  }
  // A, dh and dA of a panel: 192 KB.
  const Items items = cut(batch, channels, 16384 / d_state, threads);
  const ScanGradSums sums(op, items, scratch);
  const std::int64_t each = HWY_NAMESPACE::ScanGrad<float>::memory(op, items.panel_channels);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(stream, threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(scan_grad_items)(op, items, sums, first, last, slice);
              });
  sums.finish(stream, threads);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
