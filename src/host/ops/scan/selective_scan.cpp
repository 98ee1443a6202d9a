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
#include <utility>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/sequence.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/scan/selective_scan.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/scan/scan_panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// One state of one vector of channels, one step on.
template <bool Grows>
HWY_INLINE void step(F32Vec delta, F32Vec delta_x, F32Vec A, float B, float C, F32Vec& h,
                     F32Vec& y) {
  const F32 d;
  const F32Vec decay = scan_decay<Grows>(delta, A);
  h = hn::MulAdd(decay, h, hn::Mul(delta_x, hn::Set(d, B)));
  y = hn::MulAdd(hn::Set(d, C), h, y);
}

constexpr std::int64_t tile_steps = 8;

// What one thread does: a run of items, with buffers for one.
template <class T>
class Scan {
 public:
  Scan(const SelectiveScan& op, const Items& items, float* memory)
      : op_(op),
        items_(items),
        rows_(op.rows),
        time_(op.x.dim(1)),
        d_state_(detail::d_state_of(op)),
        grows_(detail::may_grow(op)),
        panel_(d_state_, items.panel_channels) {
    const auto next = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    delta_ = next(tile_steps * block_channels);
    delta_x_ = next(tile_steps * block_channels);
    y_ = next(tile_steps * block_channels);
    A_ = next(panel_.size());
    h_ = next(panel_.size());
    B_ = next(d_state_ * tile_steps);
    C_ = next(d_state_ * tile_steps);
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(std::int64_t d_state, std::int64_t panel_channels) {
    return 2 * d_state * (round_up(panel_channels, block_channels) + tile_steps) +
           3 * tile_steps * block_channels;
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t item = first; item < last; ++item) {
      b_ = items_.row(item);
      channel_ = items_.channel(item);
      channels_ = items_.channels_of(item);
      if (item == first || b_ == 0) panel_.gather_A(op_, channel_, channels_, A_);
      x_in_ = track<T>(op_.x, b_, channel_);
      dt_in_ = track<T>(op_.dt, b_, channel_);
      z_in_ = track<T>(op_.z, b_, channel_);
      y_out_ = track<T>(op_.y, b_, channel_);
      states_out_ = track<float>(op_.step_states, b_, channel_, d_state_);
      rows_.is_padding(b_) ? pad() : sequence();
    }
  }

 private:
  // A padding row: outputs are zeros, whatever the inputs hold.
  void pad() {
    for (std::int64_t t = 0; t < time_; ++t) {
      std::memset(y_out_.at(t), 0, static_cast<std::size_t>(channels_) * sizeof(T));
      if (states_out_) std::fill_n(states_out_.at(t), channels_ * d_state_, 0.0f);
    }
    panel_.clear(h_, channels_);
    for (std::int64_t i = 0; op_.chunk_states && i < op_.chunk_states.dim(1); ++i) {
      store_chunk_state(i);
    }
  }

  void sequence() {
    const Resets resets(op_.reset, b_);
    const std::int64_t longest = states_out_ ? 1 : tile_steps;
    const std::int64_t row_size = op_.x.dim(2) * d_state_;
    if (op_.initial_state && rows_.read(b_) >= 0) {
      const float* initial = op_.initial_state.data<float>() + rows_.read(b_) * row_size;
      panel_.gather(initial + channel_ * d_state_, d_state_, channels_, h_);
    } else {
      panel_.clear(h_, channels_);
    }
    for (std::int64_t t = 0; t < time_;) {
      if (op_.chunk_states && t % op_.chunk_steps == 0) store_chunk_state(t / op_.chunk_steps);
      if (resets.at(t)) panel_.clear(h_, channels_);
      const std::int64_t steps = resets.next(t, std::min(t + longest, chunk_end(t))) - t;
      tile(t, steps);
      if (states_out_) panel_.scatter(h_, channels_, states_out_.at(t));
      t += steps;
    }
    if (op_.final_state && rows_.write(b_) >= 0) {
      float* final_state = op_.final_state.data<float>() + rows_.write(b_) * row_size;
      panel_.scatter(h_, channels_, final_state + channel_ * d_state_);
    }
  }

  // The end of the chunk that step t is in, or of the sequence.
  std::int64_t chunk_end(std::int64_t t) const {
    if (!op_.chunk_states) return time_;
    return std::min(time_, (t / op_.chunk_steps + 1) * op_.chunk_steps);
  }

  void store_chunk_state(std::int64_t chunk) const {
    const ConstTensorView& states = op_.chunk_states;
    const std::int64_t row = b_ * states.dim(1) + chunk;
    panel_.scatter(h_, channels_,
                   op_.chunk_states.data<float>() + (row * states.dim(2) + channel_) * d_state_);
  }

  void tile(std::int64_t t, std::int64_t steps) {
    load_rows<T>(op_.B, b_, t, steps, B_);
    load_rows<T>(op_.C, b_, t, steps, C_);
    for (std::int64_t c = 0; c < channels_; c += block_channels) {
      const std::int64_t count = std::min(block_channels, channels_ - c);
      prepare(t, steps, c, count);
      grows_ ? advance<true>(steps, A_ + c * d_state_, h_ + c * d_state_, count)
             : advance<false>(steps, A_ + c * d_state_, h_ + c * d_state_, count);
      finish(t, steps, c, count);
    }
  }

  // `count` channels from the panel's channel `first` on.
  void prepare(std::int64_t t, std::int64_t steps, std::int64_t first, std::int64_t count) {
    const float* dt_bias = op_.dt_bias ? op_.dt_bias.data<float>() + channel_ + first : nullptr;
    const float* D = op_.D ? op_.D.data<float>() + channel_ + first : nullptr;
    for (std::int64_t s = 0; s < steps; ++s) {
      const T* x = x_in_.at(t + s) + first;
      const T* dt = dt_in_.at(t + s) + first;
      for (std::int64_t c = 0; c < count; c += lanes_) {
        const std::int64_t left = count - c;
        const F32Vec u = load_channels(x + c, left);
        F32Vec v = load_channels(dt + c, left);
        if (dt_bias != nullptr) v = hn::Add(v, load_channels(dt_bias + c, left));
        const F32Vec delta = op_.softplus ? softplus(d_, v) : v;
        const F32Vec Dx = D != nullptr ? hn::Mul(load_channels(D + c, left), u) : hn::Zero(d_);
        hn::Store(delta, d_, delta_ + s * block_channels + c);
        hn::Store(hn::Mul(delta, u), d_, delta_x_ + s * block_channels + c);
        hn::Store(Dx, d_, y_ + s * block_channels + c);
      }
    }
  }

  template <bool Grows>
  void advance(std::int64_t steps, const float* A, float* h, std::int64_t count) {
    for (std::int64_t c = 0; c < count; c += lanes_) {
      std::int64_t n = 0;
      for (; n + 4 <= d_state_; n += 4) advance_four<Grows>(steps, A, h, n, c);
      for (; n < d_state_; ++n) advance_one<Grows>(steps, A, h, n, c);
    }
  }

  // States n to n + 3 of the vector of channels at c.
  template <bool Grows>
  void advance_four(std::int64_t steps, const float* A, float* h, std::int64_t n, std::int64_t c) {
    constexpr std::int64_t pitch = block_channels;
    A += n * pitch + c;
    h += n * pitch + c;
    const F32Vec A0 = hn::Load(d_, A), A1 = hn::Load(d_, A + pitch);
    const F32Vec A2 = hn::Load(d_, A + 2 * pitch), A3 = hn::Load(d_, A + 3 * pitch);
    F32Vec h0 = hn::Load(d_, h), h1 = hn::Load(d_, h + pitch);
    F32Vec h2 = hn::Load(d_, h + 2 * pitch), h3 = hn::Load(d_, h + 3 * pitch);
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t i = s * pitch + c;
      const F32Vec delta = hn::Load(d_, delta_ + i);
      const F32Vec delta_x = hn::Load(d_, delta_x_ + i);
      const float* B = B_ + s * d_state_ + n;
      const float* C = C_ + s * d_state_ + n;
      F32Vec y = hn::Load(d_, y_ + i);
      step<Grows>(delta, delta_x, A0, B[0], C[0], h0, y);
      step<Grows>(delta, delta_x, A1, B[1], C[1], h1, y);
      step<Grows>(delta, delta_x, A2, B[2], C[2], h2, y);
      step<Grows>(delta, delta_x, A3, B[3], C[3], h3, y);
      hn::Store(y, d_, y_ + i);
    }
    hn::Store(h0, d_, h);
    hn::Store(h1, d_, h + pitch);
    hn::Store(h2, d_, h + 2 * pitch);
    hn::Store(h3, d_, h + 3 * pitch);
  }

  template <bool Grows>
  void advance_one(std::int64_t steps, const float* A, float* h, std::int64_t n, std::int64_t c) {
    A += n * block_channels + c;
    h += n * block_channels + c;
    F32Vec state = hn::Load(d_, h);
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t i = s * block_channels + c;
      const std::int64_t bc = s * d_state_ + n;
      F32Vec y = hn::Load(d_, y_ + i);
      step<Grows>(hn::Load(d_, delta_ + i), hn::Load(d_, delta_x_ + i), hn::Load(d_, A), B_[bc],
                  C_[bc], state, y);
      hn::Store(y, d_, y_ + i);
    }
    hn::Store(state, d_, h);
  }

  void finish(std::int64_t t, std::int64_t steps, std::int64_t first, std::int64_t count) {
    for (std::int64_t s = 0; s < steps; ++s) {
      T* to = y_out_.at(t + s) + first;
      const T* z = z_in_ ? z_in_.at(t + s) + first : nullptr;
      for (std::int64_t c = 0; c < count; c += lanes_) {
        F32Vec y = hn::Load(d_, y_ + s * block_channels + c);
        if (z != nullptr) y = hn::Mul(y, silu(d_, load_channels(z + c, count - c)));
        store_channels(y, to + c, count - c);
      }
    }
  }

  static constexpr F32 d_{};
  const std::int64_t lanes_ = vector_channels();

  const SelectiveScan& op_;
  const Items items_;
  const StateRows rows_;
  const std::int64_t time_, d_state_;
  const bool grows_;  // see detail::may_grow
  const Panel panel_;
  float *delta_, *delta_x_, *y_;  // [tile_steps][block_channels]
  float *A_, *h_;                 // panels
  float *B_, *C_;                 // [tile_steps][d_state]
  // The item at hand.
  std::int64_t b_ = 0, channel_ = 0, channels_ = 0;
  Track<const T> x_in_, dt_in_, z_in_;
  Track<T> y_out_;
  Track<float> states_out_;
};

void scan_items(const SelectiveScan& op, const Items& items, std::int64_t first, std::int64_t last,
                float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    Scan<typename decltype(type)::type>(op, items, memory).run(first, last);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(scan_items);

// The states of a chunk that the gradient recomputes stay in the first-level cache: with their
// decays 16 KB for four states of a vector of 16 channels.
std::int64_t scan_chunk_steps(const SelectiveScan&, const Stream&) { return 32; }

void run(const SelectiveScan& op, Stream& stream) {
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const std::int64_t d_state = detail::d_state_of(op);
  const std::int64_t steps = op.x.dim(0) * (op.x.dim(1) + 1) * op.x.dim(2);
  const int threads = useful_threads(stream, steps * d_state, 1 << 14);
  // A and h of a panel: 256 KB, a quarter of a usual second-level cache.
  const Items items = cut(op.x.dim(0), op.x.dim(2), 32768 / d_state, threads);
  const std::int64_t each = HWY_NAMESPACE::Scan<float>::memory(d_state, items.panel_channels);
  Scratch scratch(stream);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(stream, threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(scan_items)(op, items, first, last, slice);
              });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
