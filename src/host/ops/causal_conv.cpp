// CausalConv on the CPU. The vector lanes are channels; an item keeps the inputs of a tile of steps
// as f32, with the width - 1 inputs before them in front, so that every output, wherever time is
// cut, is the same sum of `width` products. The state is made from the raw inputs and the old
// state, never from the f32 copy, so it is exact by construction.
#include <algorithm>
#include <cstring>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/causal_conv.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class Conv {
 public:
  Conv(const CausalConv& op, float* memory)
      : op_(op),
        rows_(op.rows),
        time_(op.x.dim(1)),
        width_(op.weight.dim(1)),
        past_(width_ - 1),
        bias_(memory),
        weight_(bias_ + block_channels),
        x_(weight_ + width_ * block_channels) {}

  void run(std::int64_t first, std::int64_t last) {
    const Items items{op_.x.dim(0), op_.x.dim(2)};
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items.row(item);
      if (item == first || b_ == 0) {
        channel_ = items.first_channel(items.block(item));
        channels_ = items.channels_of(items.block(item));
        load_weight();
      }
      input_ = track<T>(op_.x, b_, channel_);
      output_ = track<T>(op_.y, b_, channel_);
      if (past_ > 0) step_states_ = track<T>(op_.step_states, b_, channel_, past_);
      rows_.is_padding(b_) ? pad() : sequence();
    }
  }

 private:
  void load_weight() {
    std::fill_n(bias_, block_channels, 0.0f);
    if (op_.bias) std::copy_n(op_.bias.data<float>() + channel_, channels_, bias_);
    std::fill_n(weight_, width_ * block_channels, 0.0f);
    const std::int64_t pitch = op_.weight.row_pitch();
    transpose(op_.weight.data<float>() + channel_ * pitch, pitch, weight_, block_channels,
              channels_, width_);
  }

  // A padding row: outputs are zeros, whatever the inputs hold.
  void pad() {
    for (std::int64_t t = 0; t < time_; ++t) {
      std::memset(output_.at(t), 0, static_cast<std::size_t>(channels_) * sizeof(T));
      if (step_states_) {
        std::memset(step_states_.at(t), 0, static_cast<std::size_t>(channels_ * past_) * sizeof(T));
      }
    }
  }

  void sequence() {
    const Resets resets(op_.reset, b_);
    start_ = -1;
    const bool continues = op_.initial_state && rows_.read(b_) >= 0 && past_ > 0;
    initial_ = continues ? state_row(op_.initial_state.data<T>(), rows_.read(b_)) : nullptr;
    load_initial();
    for (std::int64_t t = 0; t < time_;) {
      if (resets.at(t)) {
        start_ = t;
        std::fill_n(x_, past_ * block_channels, 0.0f);
      }
      const std::int64_t steps = resets.next(t, std::min(t + tile_steps, time_)) - t;
      load_x(t, steps);
      width_ == 4 ? convolve<4>(t, steps) : convolve<0>(t, steps);
      std::memmove(x_, x_ + steps * block_channels, bytes_of(past_));
      for (std::int64_t s = 0; step_states_ && s < steps; ++s) {
        store_state(t + s + 1, step_states_.at(t + s));
      }
      t += steps;
    }
    if (op_.final_state && past_ > 0 && rows_.write(b_) >= 0) {
      store_state(time_, state_row(op_.final_state.data<T>(), rows_.write(b_)));
    }
  }

  void load_initial() {
    std::fill_n(x_, past_ * block_channels, 0.0f);
    if (initial_ == nullptr) return;
    for (std::int64_t c = 0; c < channels_; ++c) {
      for (std::int64_t k = 0; k < past_; ++k) {
        x_[k * block_channels + c] = static_cast<float>(initial_[c * past_ + k]);
      }
    }
  }

  void load_x(std::int64_t t, std::int64_t steps) {
    for (std::int64_t s = 0; s < steps; ++s) {
      const T* x = input_.at(t + s);
      if (t + s + tile_steps < time_) {
        input_.prefetch(t + s + tile_steps);
        output_.prefetch(t + s + tile_steps);
      }
      for (std::int64_t c = 0; c < channels_; c += lanes_) {
        hn::Store(load_channels(x + c, channels_ - c), d_, x_ + (past_ + s) * block_channels + c);
      }
    }
  }

  // kWidth is the width where it is known at compile time, so that the weights stay in registers; 0
  // is any width.
  template <int kWidth>
  void convolve(std::int64_t t, std::int64_t steps) {
    const std::int64_t width = kWidth > 0 ? kWidth : width_;
    for (std::int64_t c = 0; c < channels_; c += lanes_) {
      const float* weight = weight_ + c;
      const F32Vec bias = hn::Load(d_, bias_ + c);
      for (std::int64_t s = 0; s < steps; ++s) {
        const float* x = x_ + s * block_channels + c;
        F32Vec y = bias;
        for (std::int64_t k = 0; k < width; ++k) {
          y = hn::MulAdd(hn::Load(d_, weight + k * block_channels),
                         hn::Load(d_, x + k * block_channels), y);
        }
        if (op_.silu) y = silu(d_, y);
        store_channels(y, output_.at(t + s) + c, channels_ - c);
      }
    }
  }

  // The state after `seen` steps: the last width - 1 inputs, where inputs before the last reset are
  // zeros and those before step 0 come from the initial state. Oldest first, so `to` may be the
  // initial state itself: what is read lies at or after what is written.
  void store_state(std::int64_t seen, T* to) const {
    for (std::int64_t c = 0; c < channels_; ++c) {
      for (std::int64_t k = 0; k < past_; ++k) {
        const std::int64_t t = seen - past_ + k;
        T value(0.0f);
        if (t >= 0) {
          if (t >= start_) value = input_.at(t)[c];
        } else if (start_ < 0 && initial_ != nullptr) {
          value = initial_[c * past_ + k + seen];
        }
        to[c * past_ + k] = value;
      }
    }
  }

  template <class Element>
  Element* state_row(Element* state, std::int64_t row) const {
    return state + (row * op_.x.dim(2) + channel_) * past_;
  }
  static std::size_t bytes_of(std::int64_t steps) {
    return static_cast<std::size_t>(steps * block_channels) * sizeof(float);
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const CausalConv& op_;
  const StateRows rows_;
  const std::int64_t time_, width_, past_;
  float* bias_;    // [block_channels]
  float* weight_;  // [width][block_channels]
  float* x_;       // [past + tile_steps][block_channels]
  // The item at hand, the step of its last reset so far (-1: none), the state it began with.
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0;
  Track<const T> input_;
  Track<T> output_, step_states_;
  std::int64_t start_ = -1;
  const T* initial_ = nullptr;
};

void conv_items(const CausalConv& op, std::int64_t first, std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    Conv<typename decltype(type)::type>(op, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(conv_items);

void run(const CausalConv& op, Stream& stream) {
  const Items items{op.x.dim(0), op.x.dim(2)};
  if (items.count() == 0) return;
  const std::int64_t width = op.weight.dim(1);
  const int threads = useful_threads(stream, items, op.x.count() * (width + 12), 1 << 20);
  const std::int64_t each = block_channels * (2 * width + tile_steps);
  Scratch scratch(stream);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(conv_items)(op, first, last, slice);
              });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
