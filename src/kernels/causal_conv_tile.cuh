// CausalConv of a few taps: a thread has V neighbouring channels (16 bytes of x where addresses
// allow) over a tile of time, weights and past inputs in registers. Time is cut into tiles so that
// the chip is full; a tile reads the inputs just before it again. And the same for one step, every
// load at once.
#pragma once

#include "kernels/causal_conv.cuh"

namespace mamba::cuda::conv {

constexpr int block_threads = 128;

// Threads are numbered by channels, then by tiles, then by batch rows from `first_row` on.
struct Grid {
  unsigned threads = 0;
  unsigned groups = 0;  // of V channels
  unsigned tiles = 1;
  std::int64_t tile = 0;  // steps; at least kPast if there is more than one tile
  std::int64_t first_row = 0;
};

// One thread's part of the work: V channels of one batch row.
template <int kWidth, int V, bool kExtras, class T>
struct Track {
  static constexpr int kPast = kWidth - 1;
  const Operands<T>& op;
  std::int64_t channel;
  const T* x;
  T* y;
  const std::int32_t* reset = nullptr;
  T* states = nullptr;
  Filter<kWidth, V> filter;

  __device__ __forceinline__ Track(const Operands<T>& operands, std::int64_t b, std::int64_t c)
      : op(operands), channel(c), x(op.x + b * op.x_row + c), y(op.y + b * op.y_row + c) {
    if constexpr (kExtras) {
      if (op.reset != nullptr) reset = op.reset + b * op.reset_row;
      if (op.states != nullptr) states = op.states + b * op.states_row + c * kPast;
    }
  }

  __device__ __forceinline__ bool resets_at(std::int64_t t) const {
    return kExtras && reset != nullptr && reset[t] != 0;
  }

  // taps[0 .. kPast) = the inputs before step t >= kPast, zeros where a reset lies between.
  __device__ __forceinline__ void load_past(std::int64_t t, Vec<T, V>* taps) const {
#pragma unroll
    for (int k = 0; k < kPast; ++k) taps[k] = load_vec<V>(x + (t - kPast + k) * op.x_step);
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      if (resets_at(t - kPast + k)) clear(taps, k);
    }
  }
  static __device__ __forceinline__ void clear(Vec<T, V>* taps, int count) {
    for (int k = 0; k < count; ++k) taps[k] = splat<V, T>(0);
  }

  // kSteps steps from t on. taps[0 .. kPast) are the inputs before them, and before the next.
  template <int kSteps>
  __device__ __forceinline__ void advance(std::int64_t t, Vec<T, V> (&past)[kPast]) const {
    Vec<T, V> taps[kPast + kSteps];
#pragma unroll
    for (int k = 0; k < kPast; ++k) taps[k] = past[k];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) taps[kPast + i] = load_vec<V>(x + (t + i) * op.x_step);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (resets_at(t + i)) {
#pragma unroll
        for (int k = 0; k < kPast; ++k) taps[i + k] = splat<V, T>(0);
      }
      store_vec(y + (t + i) * op.y_step, filter.convolve(taps + i, op.silu));
      if constexpr (kExtras) {
        if (states != nullptr) {
          store_state<kPast, V>(taps + i + 1, states + (t + i) * op.states_step);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPast; ++k) past[k] = taps[kSteps + k];
  }

  // A padding row, or one whose state row does not exist.
  __device__ void fill(std::int64_t first, std::int64_t last, float value) const {
    for (std::int64_t t = first; t < last; ++t) {
      store_vec(y + t * op.y_step, splat<V, T>(value));
      if constexpr (kExtras) {
        if (states == nullptr) continue;
        for (int k = 0; k < kPast; ++k) {
          store_vec(states + t * op.states_step + k * V, splat<V, T>(value));
        }
      }
    }
  }
};

// The thread that reads the initial state also writes the final one, last: they may be the same
// memory, and no other thread touches them.
template <int kWidth, int V, bool kExtras, class T>
__global__ void __launch_bounds__(block_threads)
    conv_tile_kernel(const Operands<T> op, const Grid grid) {
  constexpr int kPast = kWidth - 1;
  constexpr int kSteps = 4;  // loaded together
  const unsigned thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= grid.threads) return;
  const unsigned row_and_tile = thread / grid.groups;
  const std::int64_t channel = std::int64_t{thread % grid.groups} * V;
  const std::int64_t b = grid.first_row + row_and_tile / grid.tiles;
  std::int64_t t = row_and_tile % grid.tiles * grid.tile;
  const std::int64_t last = min(t + grid.tile, op.time);
  const bool first_tile = t == 0;
  Track<kWidth, V, kExtras, T> track(op, b, channel);
  const StateRow row(op, b);
  if (row.bad) return track.fill(t, last, nanf(""));
  if (row.is_padding()) return track.fill(t, last, 0);

  Vec<T, V> past[kPast];
  if (!first_tile) {
    track.load_past(t, past);
  } else if (op.initial != nullptr && row.read >= 0) {
    load_state<kPast, V>(op.initial + (row.read * op.channels + channel) * kPast, past);
  } else {
#pragma unroll
    for (int k = 0; k < kPast; ++k) past[k] = splat<V, T>(0);
  }
  track.filter.load(op, channel);
#pragma unroll 1
  for (; t + kSteps <= last; t += kSteps) track.template advance<kSteps>(t, past);
#pragma unroll 1
  for (; t < last; ++t) track.template advance<1>(t, past);
  if (!first_tile || op.final_state == nullptr || row.write < 0) return;
  if (grid.tiles > 1) track.load_past(op.time, past);
  store_state<kPast, V>(past, op.final_state + (row.write * op.channels + channel) * kPast);
}

// time == 1. Every load is on its way before the first is waited for.
template <int kWidth, int V, class T>
__global__ void __launch_bounds__(block_threads)
    conv_step_kernel(const Operands<T> op, const Grid grid) {
  constexpr int kPast = kWidth - 1;
  const unsigned thread = blockIdx.x * block_threads + threadIdx.x;
  if (thread >= grid.threads) return;
  const std::int64_t channel = std::int64_t{thread % grid.groups} * V;
  const std::int64_t b = grid.first_row + thread / grid.groups;
  const Track<kWidth, V, true, T> track(op, b, channel);
  const StateRow row(op, b);
  if (row.bad) return track.fill(0, 1, nanf(""));
  if (row.is_padding()) return track.fill(0, 1, 0);

  Vec<T, V> taps[kWidth];
#pragma unroll
  for (int k = 0; k < kPast; ++k) taps[k] = splat<V, T>(0);
  if (op.initial != nullptr && row.read >= 0 && !track.resets_at(0)) {
    load_state<kPast, V>(op.initial + (row.read * op.channels + channel) * kPast, taps);
  }
  taps[kPast] = load_vec<V>(track.x);
  Filter<kWidth, V> filter;
  filter.load(op, channel);
  store_vec(track.y, filter.convolve(taps, op.silu));
  if (track.states != nullptr) store_state<kPast, V>(taps + 1, track.states);
  if (op.final_state == nullptr || row.write < 0) return;
  store_state<kPast, V>(taps + 1, op.final_state + (row.write * op.channels + channel) * kPast);
}

}  // namespace mamba::cuda::conv
