// SelectiveScan on the CPU. The recurrence is walked in time; the vector lanes are channels, so
// there is no sum across lanes and a step's arithmetic does not depend on how time is cut. Per tile
// of steps:
//
//   prepare  delta and delta x of every step and channel, B and C as f32, D x as the start of y
//   advance  four states at a time stay in registers over the whole tile, adding C h to y
//   finish   y times silu(z)
//
// A tile ends early before a reset and, when the state after every step is wanted, after each step.
#include <algorithm>
#include <cstring>
#include <limits>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/selective_scan.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// One state of one vector of channels, one step on.
HWY_INLINE void step(F32Vec delta, F32Vec delta_x, F32Vec A, float B, float C, F32Vec& h,
                     F32Vec& y) {
  const F32 d;
  const F32Vec decay = exp2_nonpositive(d, hn::Mul(delta, A));
  h = hn::MulAdd(decay, h, hn::Mul(delta_x, hn::Set(d, B)));
  y = hn::MulAdd(hn::Set(d, C), h, y);
}

// What one thread does: a run of items, with buffers for one.
template <class T>
class Scan {
 public:
  Scan(const SelectiveScan& op, float* memory)
      : op_(op),
        rows_(op.rows),
        time_(op.x.dim(1)),
        d_state_(op.A_log.dim(1)),
        A_(memory),
        h_(A_ + d_state_ * block_channels),
        B_(h_ + d_state_ * block_channels),
        C_(B_ + d_state_ * tile_steps),
        delta_(C_ + d_state_ * tile_steps),
        delta_x_(delta_ + tile_steps * block_channels),
        y_(delta_x_ + tile_steps * block_channels) {}

  void run(std::int64_t first, std::int64_t last) {
    const Items items{op_.x.dim(0), op_.x.dim(2)};
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items.row(item);
      if (item == first || b_ == 0) {
        channel_ = items.first_channel(items.block(item));
        channels_ = items.channels_of(items.block(item));
        load_A();
      }
      x_ = track<T>(op_.x, b_, channel_);
      dt_ = track<T>(op_.dt, b_, channel_);
      z_ = track<T>(op_.z, b_, channel_);
      to_ = track<T>(op_.y, b_, channel_);
      step_states_ = track<float>(op_.step_states, b_, channel_, d_state_);
      rows_.is_padding(b_) ? pad() : sequence();
    }
  }

 private:
  // A = -exp(A_log), times log2(e) so that the decay is a power of two; finite, so that a delta of
  // 0 keeps the state; a NaN as exp2_nonpositive wants it.
  void load_A() {
    std::fill_n(A_, d_state_ * block_channels, 0.0f);
    const std::int64_t pitch = op_.A_log.row_pitch();
    transpose(op_.A_log.data<float>() + channel_ * pitch, pitch, A_, block_channels, channels_,
              d_state_);
    constexpr auto lowest = std::numeric_limits<float>::lowest();
    const auto nan = hn::Set(d_, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t i = 0; i < d_state_ * block_channels; i += lanes_) {
      const F32Vec A_log = hn::Load(d_, A_ + i);
      const F32Vec A = hn::Mul(exp(d_, A_log), hn::Set(d_, -log2_e));
      hn::Store(hn::IfThenElse(hn::IsNaN(A_log), nan, at_least(d_, A, lowest)), d_, A_ + i);
    }
  }

  // A padding row: outputs are zeros, whatever the inputs hold.
  void pad() {
    for (std::int64_t t = 0; t < time_; ++t) {
      std::memset(to_.at(t), 0, static_cast<std::size_t>(channels_) * sizeof(T));
      if (step_states_) {
        std::memset(step_states_.at(t), 0,
                    static_cast<std::size_t>(channels_ * d_state_) * sizeof(float));
      }
    }
  }

  void sequence() {
    const Resets resets(op_.reset, b_);
    const std::int64_t longest = step_states_ ? 1 : tile_steps;
    load_state();
    for (std::int64_t t = 0; t < time_;) {
      if (resets.at(t)) std::fill_n(h_, d_state_ * block_channels, 0.0f);
      const std::int64_t steps = resets.next(t, std::min(t + longest, time_)) - t;
      load_B_and_C(t, steps);
      prepare(t, steps);
      advance(steps);
      finish(t, steps);
      if (step_states_) store_state(step_states_.at(t));
      t += steps;
    }
    if (op_.final_state && rows_.write(b_) >= 0) {
      store_state(state_row(op_.final_state.data<float>(), rows_.write(b_)));
    }
  }

  void load_state() {
    std::fill_n(h_, d_state_ * block_channels, 0.0f);
    if (!op_.initial_state || rows_.read(b_) < 0) return;
    transpose(state_row(op_.initial_state.data<float>(), rows_.read(b_)), d_state_, h_,
              block_channels, channels_, d_state_);
  }
  void store_state(float* to) const {
    transpose(h_, block_channels, to, d_state_, d_state_, channels_);
  }

  void load_B_and_C(std::int64_t t, std::int64_t steps) {
    for (std::int64_t s = 0; s < steps; ++s) {
      const T* B = op_.B.data<T>() + b_ * op_.B.row_pitch() + (t + s) * op_.B.step_pitch();
      const T* C = op_.C.data<T>() + b_ * op_.C.row_pitch() + (t + s) * op_.C.step_pitch();
      for (std::int64_t n = 0; n < d_state_; n += lanes_) {
        store_channels(load_channels(B + n, d_state_ - n), B_ + s * d_state_ + n, d_state_ - n);
        store_channels(load_channels(C + n, d_state_ - n), C_ + s * d_state_ + n, d_state_ - n);
      }
    }
  }

  void prepare(std::int64_t t, std::int64_t steps) {
    const float* dt_bias = op_.dt_bias ? op_.dt_bias.data<float>() + channel_ : nullptr;
    const float* D = op_.D ? op_.D.data<float>() + channel_ : nullptr;
    for (std::int64_t s = 0; s < steps; ++s) {
      const T* x = x_.at(t + s);
      const T* dt = dt_.at(t + s);
      if (t + s + tile_steps < time_) prefetch(t + s + tile_steps);
      for (std::int64_t c = 0; c < channels_; c += lanes_) {
        const std::int64_t n = channels_ - c;
        const F32Vec u = load_channels(x + c, n);
        F32Vec v = load_channels(dt + c, n);
        if (dt_bias != nullptr) v = hn::Add(v, load_channels(dt_bias + c, n));
        const F32Vec delta = softplus(d_, v);
        const F32Vec Dx = D != nullptr ? hn::Mul(load_channels(D + c, n), u) : hn::Zero(d_);
        hn::Store(delta, d_, delta_ + s * block_channels + c);
        hn::Store(hn::Mul(delta, u), d_, delta_x_ + s * block_channels + c);
        hn::Store(Dx, d_, y_ + s * block_channels + c);
      }
    }
  }

  void advance(std::int64_t steps) {
    for (std::int64_t c = 0; c < channels_; c += lanes_) {
      std::int64_t n = 0;
      for (; n + 4 <= d_state_; n += 4) advance_four(c, n, steps);
      for (; n < d_state_; ++n) advance_one(c, n, steps);
    }
  }

  // States n to n + 3 of the vector of channels at c.
  void advance_four(std::int64_t c, std::int64_t n, std::int64_t steps) {
    const float* A = A_ + n * block_channels + c;
    float* h = h_ + n * block_channels + c;
    const F32Vec A0 = hn::Load(d_, A), A1 = hn::Load(d_, A + block_channels);
    const F32Vec A2 = hn::Load(d_, A + 2 * block_channels),
                 A3 = hn::Load(d_, A + 3 * block_channels);
    F32Vec h0 = hn::Load(d_, h), h1 = hn::Load(d_, h + block_channels);
    F32Vec h2 = hn::Load(d_, h + 2 * block_channels), h3 = hn::Load(d_, h + 3 * block_channels);
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t i = s * block_channels + c;
      const F32Vec delta = hn::Load(d_, delta_ + i);
      const F32Vec delta_x = hn::Load(d_, delta_x_ + i);
      const float* B = B_ + s * d_state_ + n;
      const float* C = C_ + s * d_state_ + n;
      F32Vec y = hn::Load(d_, y_ + i);
      step(delta, delta_x, A0, B[0], C[0], h0, y);
      step(delta, delta_x, A1, B[1], C[1], h1, y);
      step(delta, delta_x, A2, B[2], C[2], h2, y);
      step(delta, delta_x, A3, B[3], C[3], h3, y);
      hn::Store(y, d_, y_ + i);
    }
    hn::Store(h0, d_, h);
    hn::Store(h1, d_, h + block_channels);
    hn::Store(h2, d_, h + 2 * block_channels);
    hn::Store(h3, d_, h + 3 * block_channels);
  }

  void advance_one(std::int64_t c, std::int64_t n, std::int64_t steps) {
    const F32Vec A = hn::Load(d_, A_ + n * block_channels + c);
    F32Vec h = hn::Load(d_, h_ + n * block_channels + c);
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t i = s * block_channels + c;
      F32Vec y = hn::Load(d_, y_ + i);
      step(hn::Load(d_, delta_ + i), hn::Load(d_, delta_x_ + i), A, B_[s * d_state_ + n],
           C_[s * d_state_ + n], h, y);
      hn::Store(y, d_, y_ + i);
    }
    hn::Store(h, d_, h_ + n * block_channels + c);
  }

  void finish(std::int64_t t, std::int64_t steps) {
    for (std::int64_t s = 0; s < steps; ++s) {
      T* to = to_.at(t + s);
      const T* z = z_ ? z_.at(t + s) : nullptr;
      for (std::int64_t c = 0; c < channels_; c += lanes_) {
        const std::int64_t n = channels_ - c;
        F32Vec y = hn::Load(d_, y_ + s * block_channels + c);
        if (z != nullptr) y = hn::Mul(y, silu(d_, load_channels(z + c, n)));
        store_channels(y, to + c, n);
      }
    }
  }

  void prefetch(std::int64_t t) const {
    x_.prefetch(t);
    dt_.prefetch(t);
    to_.prefetch(t);
    if (z_) z_.prefetch(t);
  }

  template <class Float>
  Float* state_row(Float* state, std::int64_t row) const {
    return state + (row * op_.x.dim(2) + channel_) * d_state_;
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const SelectiveScan& op_;
  const StateRows rows_;
  const std::int64_t time_, d_state_;
  float *A_, *h_;                 // [d_state][block_channels]
  float *B_, *C_;                 // [tile_steps][d_state]
  float *delta_, *delta_x_, *y_;  // [tile_steps][block_channels]
  // The item at hand.
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0;
  Track<const T> x_, dt_, z_;
  Track<T> to_;
  Track<float> step_states_;
};

void scan_items(const SelectiveScan& op, std::int64_t first, std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    Scan<typename decltype(type)::type>(op, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(scan_items);

void run(const SelectiveScan& op, Stream& stream) {
  const Items items{op.x.dim(0), op.x.dim(2)};
  if (items.count() == 0) return;
  const std::int64_t d_state = op.A_log.dim(1);
  const int threads =
      useful_threads(stream, items, (op.x.count() + items.count()) * d_state, 65536);
  const std::int64_t each =
      2 * d_state * (block_channels + tile_steps) + 3 * tile_steps * block_channels;
  Scratch scratch(stream);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(scan_items)(op, first, last, slice);
              });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
