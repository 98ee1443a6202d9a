// CausalConv on the CPU. The vector lanes are channels. Every output is the same sum over `width`
// rows of channels; a row is a step of x, a column of the initial state, or zeros, and only row()
// knows which, so it cannot matter where time is cut. States are made of the same rows, in storage:
// they are exact.
#include <algorithm>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/conv/causal_conv.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class Conv {
 public:
  Conv(const CausalConv& op, const Items& items, float* memory)
      : op_(op),
        items_(items),
        rows_(op.rows),
        time_(op.x.dim(1)),
        width_(op.weight.dim(1)),
        past_(width_ - 1),
        panel_(items.panel_channels) {
    weight_ = memory;
    bias_ = weight_ + width_ * panel_;
    history_ = reinterpret_cast<T*>(bias_ + panel_);
    zeros_ = history_ + past_ * panel_;
    std::fill_n(zeros_, panel_, T(0.0f));
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(std::int64_t width, std::int64_t panel_channels) {
    return (2 * width + 1) * panel_channels;
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items_.row(item);
      channel_ = items_.channel(item);
      channels_ = items_.channels_of(item);
      if (item == first || b_ == 0) load_weight();
      x_in_ = track<T>(op_.x, b_, channel_);
      y_out_ = track<T>(op_.y, b_, channel_);
      if (past_ > 0) states_out_ = track<T>(op_.step_states, b_, channel_, past_);
      rows_.is_padding(b_) ? pad() : sequence();
    }
  }

 private:
  // [channel][k] in memory, [k][channel] here; lanes without a channel are zeros.
  void load_weight() {
    std::fill_n(weight_, (width_ + 1) * panel_, 0.0f);
    const std::int64_t pitch = op_.weight.row_pitch();
    const float* weight = op_.weight.data<float>() + channel_ * pitch;
    transpose(weight, pitch, weight_, panel_, channels_, width_);
    if (op_.bias) std::copy_n(op_.bias.data<float>() + channel_, channels_, bias_);
  }

  // A padding row: outputs are zeros, whatever the inputs hold.
  void pad() {
    for (std::int64_t t = 0; t < time_; ++t) {
      std::fill_n(y_out_.at(t), channels_, T(0.0f));
      if (states_out_) std::fill_n(states_out_.at(t), channels_ * past_, T(0.0f));
    }
  }

  void sequence() {
    const Resets resets(op_.reset, b_);
    const std::int64_t row_size = op_.x.dim(2) * past_;
    start_ = -past_;
    load_history(row_size);
    for (std::int64_t t = 0; t < time_; ++t) {
      if (resets.at(t)) start_ = t;
      width_ == 4 ? step<4>(t) : step<0>(t);
      if (states_out_) store_state(t + 1, states_out_.at(t));
    }
    if (op_.final_state && past_ > 0 && rows_.write(b_) >= 0) {
      T* final_state = op_.final_state.data<T>() + rows_.write(b_) * row_size;
      store_state(time_, final_state + channel_ * past_);
    }
  }

  // A copy, so that the final state may take the initial one's place.
  void load_history(std::int64_t row_size) {
    if (past_ == 0) return;
    if (!op_.initial_state || rows_.read(b_) < 0) {
      std::fill_n(history_, past_ * panel_, T(0.0f));
      return;
    }
    const T* initial = op_.initial_state.data<T>() + rows_.read(b_) * row_size;
    transpose(initial + channel_ * past_, past_, history_, panel_, channels_, past_);
  }

  // The inputs of step t, which is -past or later; zeros where another sequence had that step.
  const T* row(std::int64_t t) const {
    if (t < start_) return zeros_;
    return t < 0 ? history_ + (t + past_) * panel_ : x_in_.at(t);
  }

  // kWidth is the width where it is known at compile time, so that the rows' addresses stay in
  // registers; 0 is any width.
  template <int kWidth>
  void step(std::int64_t t) {
    T* to = y_out_.at(t);
    if constexpr (kWidth > 0) {
      const T* rows[kWidth];
      for (std::int64_t k = 0; k < kWidth; ++k) rows[k] = row(t - past_ + k);
      for (std::int64_t c = 0; c < channels_; c += lanes_) {
        F32Vec y = hn::Load(d_, bias_ + c);
        for (std::int64_t k = 0; k < kWidth; ++k) y = add_tap(y, k, rows[k], c);
        finish(y, to, c);
      }
    } else {
      for (std::int64_t c = 0; c < channels_; c += lanes_) {
        F32Vec y = hn::Load(d_, bias_ + c);
        for (std::int64_t k = 0; k < width_; ++k) y = add_tap(y, k, row(t - past_ + k), c);
        finish(y, to, c);
      }
    }
  }

  HWY_INLINE F32Vec add_tap(F32Vec y, std::int64_t k, const T* x, std::int64_t c) const {
    const F32Vec weight = hn::Load(d_, weight_ + k * panel_ + c);
    return hn::MulAdd(weight, load_channels(x + c, channels_ - c), y);
  }
  HWY_INLINE void finish(F32Vec y, T* to, std::int64_t c) const {
    if (op_.silu) y = silu(d_, y);
    store_channels(y, to + c, channels_ - c);
  }

  // The state after `seen` steps, oldest input first.
  void store_state(std::int64_t seen, T* to) const {
    for (std::int64_t k = 0; k < past_; ++k) {
      const T* x = row(seen - past_ + k);
      for (std::int64_t c = 0; c < channels_; ++c) to[c * past_ + k] = x[c];
    }
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const CausalConv& op_;
  const Items items_;
  const StateRows rows_;
  const std::int64_t time_, width_, past_, panel_;
  float* weight_;  // [width][panel]
  float* bias_;    // [panel]
  T* history_;     // [past][panel]: the initial state
  T* zeros_;       // [panel]
  // The item at hand, and the step its present sequence began at.
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0, start_ = 0;
  Track<const T> x_in_;
  Track<T> y_out_, states_out_;
};

void conv_items(const CausalConv& op, const Items& items, std::int64_t first, std::int64_t last,
                float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    Conv<typename decltype(type)::type>(op, items, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(conv_items);

void run(const CausalConv& op, Stream& stream) {
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const std::int64_t width = op.weight.dim(1);
  const int threads = useful_threads(stream, op.x.count() * (width + 12), 1 << 20);
  // The rows and weights of a panel: half of a first-level cache of 32 KB.
  const Items items = cut(op.x.dim(0), op.x.dim(2), 2048 / width, threads);
  const std::int64_t each = HWY_NAMESPACE::Conv<float>::memory(width, items.panel_channels);
  Scratch scratch(stream);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(stream, threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(conv_items)(op, items, first, last, slice);
              });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
