// SsdPlan::steps: the recurrence, whose vector lanes are the states of a channel, as they lie in
// memory. A state goes from where it was to where it is wanted and is in no buffer between.
// Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_SSD_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SSD_STEPS_INL_H_
#undef MAMBA_HOST_OPS_SSD_STEPS_INL_H_
#else
#define MAMBA_HOST_OPS_SSD_STEPS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "host/ops/ssd/ssd_head-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class SsdSteps {
 public:
  SsdSteps(const Ssd& op, const SsdItems& items, float* memory)
      : op_(op), items_(items), sizes_(op), rows_(op.rows) {
    const auto next = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    for (float** rows : {&B_, &C_, &delta_x_, &y_}) *rows = next(tile_steps * wide);
    state_ = next(items.most_heads() * sizes_.state());
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(const SsdSizes& sizes, const SsdItems& items) {
    return 4 * tile_steps * wide + round_up(items.most_heads() * sizes.state(), 16);
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      item_ = items_.at(i);
      if (!rows_.is_padding(item_.b)) sequence();
    }
  }

 private:
  static constexpr std::int64_t tile_steps = 16;

  // Of the item's heads, which lie in a state one after the other.
  std::int64_t size() const { return item_.heads * sizes_.state(); }
  std::int64_t offset(std::int64_t row) const {
    return (row * sizes_.heads + item_.head) * sizes_.state();
  }

  void sequence() {
    const Resets resets(op_.reset, item_.b);
    const std::int64_t read = rows_.read(item_.b), write = rows_.write(item_.b);
    const float* from = nullptr;  // the state before the next step; nullptr: zeros
    if (op_.initial_state && read >= 0) from = op_.initial_state.data<float>() + offset(read);
    const bool keeps = op_.final_state && write >= 0;
    float* to = keeps ? op_.final_state.data<float>() + offset(write) : state_;
    for (std::int64_t t = 0; t < sizes_.time;) {
      if (op_.chunk_states && t % op_.chunk_steps == 0) {
        const std::int64_t chunk = item_.b * op_.chunk_states.dim(1) + t / op_.chunk_steps;
        put(from, op_.chunk_states.data<float>() + offset(chunk));
      }
      if (resets.at(t)) from = nullptr;
      const std::int64_t steps = resets.next(t, std::min(t + longest(), kept_end(t))) - t;
      tile(t, steps, from, to);
      from = to;
      if (op_.step_states) put(from, step_state(t));
      t += steps;
    }
    if (keeps && from != to) put(from, to);
  }

  std::int64_t longest() const { return op_.step_states ? 1 : tile_steps; }
  std::int64_t kept_end(std::int64_t t) const {
    if (!op_.chunk_states) return sizes_.time;
    return std::min(sizes_.time, (t / op_.chunk_steps + 1) * op_.chunk_steps);
  }
  float* step_state(std::int64_t t) const {
    return op_.step_states.data<float>() + item_.b * op_.step_states.row_pitch() +
           t * op_.step_states.step_pitch() + item_.head * sizes_.state();
  }

  void put(const float* from, float* to) const {
    const auto bytes = static_cast<std::size_t>(size()) * sizeof(float);
    from != nullptr ? std::memcpy(to, from, bytes) : std::memset(to, 0, bytes);
  }

  void tile(std::int64_t t, std::int64_t steps, const float* from, float* to) {
    const std::int64_t column = item_.group * sizes_.d_state;
    load_steps<T>(op_.B, item_.b, t, steps, column, sizes_.d_state, B_, wide);
    load_steps<T>(op_.C, item_.b, t, steps, column, sizes_.d_state, C_, wide);
    for (std::int64_t k = 0; k < item_.heads; ++k) {
      const float* before = from == nullptr ? nullptr : from + k * sizes_.state();
      one_head(t, steps, item_.head + k, before, to + k * sizes_.state());
    }
  }

  void one_head(std::int64_t t, std::int64_t steps, std::int64_t head, const float* from,
                float* to) {
    const std::int64_t channel = head * sizes_.head_dim;
    head_.load_from<T>(op_, item_.b, t, steps, head);
    for (std::int64_t s = 0; s < steps; s += vector_channels()) {
      store(exp2_nonpositive(d_, load(head_.exponent + s)), head_.exponent + s);
    }
    load_steps<T>(op_.x, item_.b, t, steps, channel, sizes_.head_dim, delta_x_, wide);
    const F32Vec D = hn::Set(d_, op_.D ? op_.D.data<float>()[head] : 0);
    for (std::int64_t s = 0; s < steps; ++s) {
      const F32Vec delta = hn::Set(d_, head_.delta[s]);
      for (std::int64_t p = 0; p < sizes_.head_dim; p += vector_channels()) {
        const F32Vec x = load(delta_x_ + s * wide + p);
        store(op_.D ? hn::Mul(D, x) : hn::Zero(d_), y_ + s * wide + p);
        store(hn::Mul(delta, x), delta_x_ + s * wide + p);
      }
    }
    for (std::int64_t s = 0; s < steps;) {  // a tile's first steps read elsewhere than they write
      if (s + 4 <= steps) {
        channels<4, 2>(s, from, to);
        s += 4;
      } else {
        channels<1, 4>(s, from, to);
        ++s;
      }
      from = to;
    }
    store_steps<T>(y_, wide, op_.y, item_.b, t, steps, channel, sizes_.head_dim);
  }

  template <int kSteps, int kChannels>
  void channels(std::int64_t s, const float* from, float* to) {
    std::int64_t p = 0;
    for (; p + kChannels <= sizes_.head_dim; p += kChannels)
      some<kSteps, kChannels>(s, p, from, to);
    for (; p < sizes_.head_dim; ++p) some<kSteps, 1>(s, p, from, to);
  }

  // Steps s .. s + kSteps of channels p .. p + kChannels.
  template <int kSteps, int kChannels>
  HWY_INLINE void some(std::int64_t s, std::int64_t p, const float* from, float* to) {
    const std::int64_t d_state = sizes_.d_state;
    F32Vec y[kSteps][kChannels];
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kChannels; ++r) y[i][r] = hn::Zero(d_);
    }
    for (std::int64_t n = 0; n < d_state; n += vector_channels()) {
      const std::int64_t left = d_state - n;
      F32Vec h[kChannels];
#pragma GCC unroll 4
      for (int r = 0; r < kChannels; ++r) {
        h[r] = from == nullptr ? hn::Zero(d_) : load_channels(from + (p + r) * d_state + n, left);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kSteps; ++i) {
        const F32Vec decay = hn::Set(d_, head_.exponent[s + i]);
        const F32Vec B = load(B_ + (s + i) * wide + n), C = load(C_ + (s + i) * wide + n);
        const float* delta_x = delta_x_ + (s + i) * wide + p;
#pragma GCC unroll 4
        for (int r = 0; r < kChannels; ++r) {
          h[r] = hn::MulAdd(decay, h[r], hn::Mul(hn::Set(d_, delta_x[r]), B));
          y[i][r] = hn::MulAdd(h[r], C, y[i][r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kChannels; ++r) store_channels(h[r], to + (p + r) * d_state + n, left);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kChannels; ++r) {
        y_[(s + i) * wide + p + r] += hn::GetLane(hn::SumOfLanes(d_, y[i][r]));
      }
    }
  }

  static constexpr F32 d_{};

  const Ssd& op_;
  const SsdItems& items_;
  const SsdSizes sizes_;
  const StateRows rows_;
  HeadSteps head_;       // its exponents become decays
  float *B_, *C_;        // [tile_steps][d_state]
  float *delta_x_, *y_;  // [tile_steps][head_dim]
  float* state_;         // of the item's heads, where no final state is wanted
  SsdItem item_{};
};

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
