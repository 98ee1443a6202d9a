// CausalConvGrad on the CPU. The vector lanes are channels; time is walked from its end, so that
// when dx of a step is due, the gradients of the outputs that it entered are in a ring of `width`
// rows. As in causal_conv.cpp a row of inputs is a step of x, a column of the initial state, or
// zeros.
#include <algorithm>
#include <utility>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/conv/causal_conv_grad.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class ConvGrad {
 public:
  // dweight [batch, channels, width] and dbias [batch, channels]: a place for each batch row.
  ConvGrad(const CausalConvGrad& op, const Items& items, float* dweight, float* dbias,
           float* memory)
      : op_(op),
        items_(items),
        time_(op.x.dim(1)),
        width_(op.weight.dim(1)),
        past_(width_ - 1),
        panel_(items.panel_channels),
        dweight_out_(dweight),
        dbias_out_(dbias) {
    const auto next = [&](std::int64_t rows) {
      return std::exchange(memory, memory + rows * panel_);
    };
    weight_ = next(width_);
    dweight_ = next(width_);
    ring_ = next(width_);
    bias_ = next(1);
    dbias_ = next(1);
    no_gradient_ = next(1);
    history_ = reinterpret_cast<T*>(next(past_));
    dfinal_ = reinterpret_cast<T*>(next(past_));
    dinitial_ = reinterpret_cast<T*>(next(past_));
    zeros_ = reinterpret_cast<T*>(next(1));
    std::fill_n(no_gradient_, panel_, 0.0f);
    std::fill_n(zeros_, panel_, T(0.0f));
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(std::int64_t width, std::int64_t panel_channels) {
    return (6 * width + 1) * panel_channels;
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items_.row(item);
      channel_ = items_.channel(item);
      channels_ = items_.channels_of(item);
      if (item == first || b_ == 0) load_weight();
      std::fill_n(dweight_, width_ * panel_, 0.0f);
      std::fill_n(dbias_, panel_, 0.0f);
      load_state(op_.initial_state, history_);
      load_state(op_.dfinal_state, dfinal_);
      x_in_ = track<T>(op_.x, b_, channel_);
      dy_in_ = track<T>(op_.dy, b_, channel_);
      dx_out_ = track<T>(op_.dx, b_, channel_);
      sequence();
      leave_sums();
    }
  }

 private:
  // [channel][k] in memory, [k][channel] here; lanes without a channel are zeros.
  void load_weight() {
    std::fill_n(weight_, width_ * panel_, 0.0f);
    std::fill_n(bias_, panel_, 0.0f);
    const std::int64_t pitch = op_.weight.row_pitch();
    transpose(op_.weight.data<float>() + channel_ * pitch, pitch, weight_, panel_, channels_,
              width_);
    if (op_.bias) std::copy_n(op_.bias.data<float>() + channel_, channels_, bias_);
  }

  std::int64_t state_offset() const { return (b_ * op_.x.dim(2) + channel_) * past_; }

  void load_state(const ConstTensorView& state, T* to) const {
    std::fill_n(to, past_ * panel_, T(0.0f));
    if (!state || past_ == 0) return;
    transpose(state.data<T>() + state_offset(), past_, to, panel_, channels_, past_);
  }

  void sequence() {
    const Resets resets(op_.reset, b_);
    limit_ = time_;
    start_ = start_of(resets, time_ - 1);
    for (std::int64_t t = time_ - 1; t >= 0; --t) {
      width_ == 4 ? output_gradient<4>(t) : output_gradient<0>(t);
      width_ == 4 ? input_gradient<4>(t, dx_out_.at(t)) : input_gradient<0>(t, dx_out_.at(t));
      if (!resets.at(t)) continue;
      limit_ = t;
      start_ = start_of(resets, t - 1);
    }
    if (!op_.dinitial_state || past_ == 0) return;
    for (std::int64_t t = -past_; t < 0; ++t) {
      input_gradient<0>(t, dinitial_ + (t + past_) * panel_);
    }
    transpose(dinitial_, panel_, op_.dinitial_state.data<T>() + state_offset(), past_, past_,
              channels_);
  }

  // The step that the sequence of step t began at.
  std::int64_t start_of(const Resets& resets, std::int64_t t) const {
    while (t >= 0 && !resets.at(t)) --t;
    return t >= 0 ? t : -past_;
  }

  // The inputs of step t, which is -past or later; zeros where another sequence had that step.
  const T* row(std::int64_t t) const {
    if (t < start_) return zeros_;
    return t < 0 ? history_ + (t + past_) * panel_ : x_in_.at(t);
  }

  // The gradient of the sum behind output t goes into the ring and to the weights. kWidth is the
  // width where it is known at compile time.
  template <int kWidth>
  void output_gradient(std::int64_t t) {
    const std::int64_t width = kWidth > 0 ? kWidth : width_;
    const T* dy = dy_in_.at(t);
    float* to = ring_ + t % width * panel_;
    for (std::int64_t c = 0; c < channels_; c += lanes_) {
      const std::int64_t left = channels_ - c;
      F32Vec g = load_channels(dy + c, left);
      if (op_.silu) {
        F32Vec sum = hn::Load(d_, bias_ + c);
        for (std::int64_t k = 0; k < width; ++k) {
          const F32Vec x = load_channels(row(t - past_ + k) + c, left);
          sum = hn::MulAdd(hn::Load(d_, weight_ + k * panel_ + c), x, sum);
        }
        g = hn::Mul(g, silu_slope(d_, sum));
      }
      hn::Store(g, d_, to + c);
      hn::Store(hn::Add(hn::Load(d_, dbias_ + c), g), d_, dbias_ + c);
      for (std::int64_t k = 0; k < width; ++k) {
        float* sum = dweight_ + k * panel_ + c;
        const F32Vec x = load_channels(row(t - past_ + k) + c, left);
        hn::Store(hn::MulAdd(g, x, hn::Load(d_, sum)), d_, sum);
      }
    }
  }

  // Input t entered outputs t to t + past of its own sequence, and maybe the final state.
  template <int kWidth>
  void input_gradient(std::int64_t t, T* to) const {
    const std::int64_t width = kWidth > 0 ? kWidth : width_;
    const bool remembered = limit_ == time_ && t >= time_ - past_;
    const T* last = remembered ? dfinal_ + (t - (time_ - past_)) * panel_ : zeros_;
    for (std::int64_t c = 0; c < channels_; c += lanes_) {
      F32Vec sum = load_channels(last + c, channels_ - c);
      for (std::int64_t k = 0; k < width; ++k) {
        const std::int64_t output = t + past_ - k;
        const bool own = output >= 0 && output < limit_;
        const float* g = own ? ring_ + output % width * panel_ : no_gradient_;
        sum = hn::MulAdd(hn::Load(d_, weight_ + k * panel_ + c), hn::Load(d_, g + c), sum);
      }
      store_channels(sum, to + c, channels_ - c);
    }
  }

  void leave_sums() const {
    const std::int64_t channel = b_ * op_.x.dim(2) + channel_;
    transpose(dweight_, panel_, dweight_out_ + channel * width_, width_, width_, channels_);
    std::copy_n(dbias_, channels_, dbias_out_ + channel);
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const CausalConvGrad& op_;
  const Items items_;
  const std::int64_t time_, width_, past_, panel_;
  float *dweight_out_, *dbias_out_;
  float *weight_, *dweight_;             // [width][panel]
  float* ring_;                          // [width][panel]: row t % width is of output t
  float *bias_, *dbias_, *no_gradient_;  // [panel]
  T *history_, *dfinal_, *dinitial_;     // [past][panel]
  T* zeros_;                             // [panel]
  // The item at hand; where the sequence of the step at hand began, and where the next one does.
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0, start_ = 0, limit_ = 0;
  Track<const T> x_in_, dy_in_;
  Track<T> dx_out_;
};

void conv_grad_items(const CausalConvGrad& op, const Items& items, float* dweight, float* dbias,
                     std::int64_t first, std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    ConvGrad<typename decltype(type)::type>(op, items, dweight, dbias, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(conv_grad_items);

void run(const CausalConvGrad& op, Stream& stream) {
  const std::int64_t batch = op.x.dim(0);
  const std::int64_t channels = op.x.dim(2);
  const std::int64_t width = op.weight.dim(1);
  Scratch scratch(stream);
  float* dweight = scratch.take({batch, channels, width}, DType::f32).data<float>();
  float* dbias = scratch.take({batch, channels}, DType::f32).data<float>();
  if (batch > 0 && channels > 0) {
    const int threads = useful_threads(stream, op.x.count() * (3 * width + 12), 1 << 20);
    // The rows and weights of a panel: half of a first-level cache of 32 KB.
    const Items items = cut(batch, channels, 1024 / width, threads);
    const std::int64_t each = HWY_NAMESPACE::ConvGrad<float>::memory(width, items.panel_channels);
    const TensorView memory = scratch.take({threads, each}, DType::f32);
    each_thread(stream, threads, items.count(), memory,
                [&](std::int64_t first, std::int64_t last, float* slice) {
                  HWY_DYNAMIC_DISPATCH(conv_grad_items)
                  (op, items, dweight, dbias, first, last, slice);
                });
  }
  add_batch_rows(dweight, batch, op.dweight, op.accumulate);
  add_batch_rows(dbias, batch, op.dbias, op.accumulate);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
