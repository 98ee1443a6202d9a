// CausalConv of a few taps: a thread has V neighbouring channels (4 where addresses allow) over a
// tile of time, weights and past inputs in registers. Time is cut into tiles so that the chip is
// full; a tile reads the inputs just before it again. And the same for one step, every load at
// once.
//
// Measured on an H200, bf16, width 4, (8, 2048 steps, 5120 channels), whose bytes take 78 us at the
// rate of a device copy: 88 us. 8 channels to a thread need 96 registers and take 5 us longer than
// 4, which fit 64; loads into registers instead of shared memory take 2 us longer; 24 steps to a
// tile 2, 36 steps 4, 12 steps 6.
#pragma once

#include "kernels/conv/causal_conv.cuh"
#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/ptx.cuh"

namespace mamba::cuda::conv {

constexpr int tile_threads = 256;
constexpr int step_threads = 128;

// Inputs are requested so many steps before they are used: a multiple of 1, 2 and 3 past inputs.
constexpr int depth = 6;

// Threads are numbered by channels, then by tiles, then by batch rows from `first_row` on.
struct Grid {
  unsigned threads = 0;
  unsigned groups = 0;  // of V channels
  unsigned tiles = 1;
  std::int64_t tile = 0;  // steps; at least kPast if there is more than one tile
  std::int64_t first_row = 0;
};

// Inputs on their way from memory, `depth` steps ahead of the step at work: the loads of a thread
// then do not wait for its arithmetic. Vectors go around the registers into shared memory, each
// thread to slots of its own, so that no barrier is needed; single channels wait in registers.
// kOperand tells several of them in one kernel apart.
template <int V, class T, int kOperand = 0>
struct Ahead {
  using Words = typename Packed<T, V>::Words;
  static constexpr bool staged = sizeof(Words) >= 8;
  Packed<T, V> slots[staged ? 1 : depth];

  static __device__ __forceinline__ Words* shared_slot(int i) {
    __shared__ Words memory[depth * tile_threads];
    return memory + i * tile_threads + threadIdx.x;
  }
  // Slot i will have the inputs at `from`. Called once per step, wanted or not; then, once for all
  // operands, end_of_step().
  __device__ __forceinline__ void request(int i, const T* from, bool wanted) {
    if constexpr (staged) {
      const unsigned to = shared_address(shared_slot(i));
      if (wanted) copy_bytes<sizeof(Words)>(to, from);
    } else {
      if (wanted) slots[i] = Packed<T, V>::load(from);
    }
  }
  static __device__ __forceinline__ void end_of_step() {
    if constexpr (staged) end_of_copies();
  }
  // Waits until what was requested `depth` steps ago is there.
  static __device__ __forceinline__ void wait() {
    if constexpr (staged) wait_for_copies<depth - 1>();
  }
  __device__ __forceinline__ Packed<T, V> slot(int i) const {
    if constexpr (staged) {
      return {*shared_slot(i)};
    } else {
      return slots[i];
    }
  }
};

// One thread's part of the work: V channels of one batch row, from some step on.
template <int kWidth, int V, bool kExtras, class T>
struct Track {
  static constexpr int kPast = kWidth - 1;
  const Operands<T>& op;
  const T* x;  // of the first step
  T* y;        // of the step to come, as are `states`
  const std::int32_t* reset = nullptr;
  T* states = nullptr;
  Filter<kWidth, V> filter;
  float past[kPast][V];  // the inputs before the step to come

  __device__ __forceinline__ Track(const Operands<T>& operands, std::int64_t b, std::int64_t c,
                                   std::int64_t t)
      : op(operands),
        x(op.x + b * op.x_row + t * op.x_step + c),
        y(op.y + b * op.y_row + t * op.y_step + c) {
    if constexpr (kExtras) {
      if (op.reset != nullptr) reset = op.reset + b * op.reset_row + t;
      if (op.states != nullptr) {
        states = op.states + b * op.states_row + t * op.states_step + c * kPast;
      }
    }
  }

  // Whether a sequence begins `steps` after this track's first step.
  __device__ __forceinline__ bool resets_at(std::int64_t steps) const {
    return kExtras && reset != nullptr && reset[steps] != 0;
  }

  // The kPast inputs before the step `steps` after this track's first, zeros where a reset lies
  // between.
  __device__ __forceinline__ void load_past(std::int64_t steps, float (&to)[kPast][V]) const {
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      Packed<T, V>::load(x + (steps + k - kPast) * op.x_step).unpack(to[k]);
    }
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      if (resets_at(steps + k - kPast)) clear(to, k);
    }
  }

  __device__ __forceinline__ void load_initial(const StateRow<>& row, std::int64_t channel) {
    if (op.initial != nullptr && row.read >= 0 && !row.bad) {
      load_state(op.initial + (row.read * op.channels + channel) * kPast, past);
    } else {
      clear(past);
    }
  }

  // The state after all steps, written before the first one is computed, so that nothing it needs
  // is kept in registers meanwhile; `past` is the initial state, which may be in the same memory.
  __device__ __forceinline__ void store_final(const StateRow<>& row, std::int64_t channel) const {
    float last[kPast][V];
    if (op.time >= kPast) {
      load_past(op.time, last);
    } else {
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
#pragma unroll
        for (int c = 0; c < V; ++c) last[k][c] = past[k][c];
      }
      for (int t = 0; t < static_cast<int>(op.time); ++t) {
        if (resets_at(t)) clear(last);
#pragma unroll
        for (int k = 0; k + 1 < kPast; ++k) {
#pragma unroll
          for (int c = 0; c < V; ++c) last[k][c] = last[k + 1][c];
        }
        Packed<T, V>::load(x + t * op.x_step).unpack(last[kPast - 1]);
      }
    }
    store_state(last, 0, op.final_state + (row.write * op.channels + channel) * kPast);
  }

  // Step t after the first; past[oldest] holds the oldest inputs.
  __device__ __forceinline__ void step(int t, int oldest, const Packed<T, V>& packed) {
    float input[V];
    packed.unpack(input);
    if (resets_at(t)) clear(past);
    filter.template step<T>(past, input, oldest, op.silu).store(y);
    y += op.y_step;
    if constexpr (kExtras) {
      if (states != nullptr) {
        store_state(past, oldest + 1, states);
        states += op.states_step;
      }
    }
  }

  // time == 1, from the state in `past`.
  __device__ __forceinline__ void only_step(const StateRow<>& row, std::int64_t channel,
                                            const Packed<T, V>& input) {
    if (row.is_absent()) return fill(1, row.bad ? nanf("") : 0);
    step(0, 0, input);
    if (op.final_state == nullptr || row.write < 0) return;
    store_state(past, 1, op.final_state + (row.write * op.channels + channel) * kPast);
  }

  // A padding row, or one whose state row does not exist.
  __device__ void fill(int steps, float value) {
    float values[V];
#pragma unroll
    for (int c = 0; c < V; ++c) values[c] = value;
    const auto packed = Packed<T, V>::pack(values);
    for (int i = 0; i < steps; ++i) {
      packed.store(y + i * op.y_step);
      if constexpr (kExtras) {
        if (states == nullptr) continue;
        for (int k = 0; k < kPast; ++k) packed.store(states + i * op.states_step + k * V);
      }
    }
  }
};

// The thread that reads the initial state also writes the final one: they may be the same memory,
// and no other thread touches them.
template <int kWidth, int V, bool kExtras, class T>
__global__ void __launch_bounds__(tile_threads, kExtras ? 3 : 4)
    conv_tile_kernel(const Operands<T> op, const Grid grid) {
  static_assert(depth % (kWidth - 1) == 0, "the ring of past inputs is back where it began");
  const unsigned thread = blockIdx.x * tile_threads + threadIdx.x;
  if (thread >= grid.threads) return;
  const unsigned row_and_tile = thread / grid.groups;
  const std::int64_t channel = std::int64_t{thread % grid.groups} * V;
  const std::int64_t b = grid.first_row + row_and_tile / grid.tiles;
  const std::int64_t t = row_and_tile % grid.tiles * grid.tile;
  const auto steps = static_cast<int>(min(grid.tile, op.time - t));
  Track<kWidth, V, kExtras, T> track(op, b, channel, t);
  const StateRow<> row = state_row(op, b);
  if (row.bad) return track.fill(steps, nanf(""));
  if (row.padding) return track.fill(steps, 0);

  const T* x = track.x;
  Ahead<V, T> ahead;
#pragma unroll
  for (int i = 0; i < depth; ++i, x += op.x_step) {
    ahead.request(i, x, i < steps);
    ahead.end_of_step();
  }
  if (t > 0) {
    track.load_past(0, track.past);
  } else {
    track.load_initial(row, channel);
    if (op.final_state != nullptr && row.write >= 0) track.store_final(row, channel);
  }
  track.filter.load(op, channel);
#pragma unroll 1
  for (int s = 0; s < steps; s += depth) {
#pragma unroll
    for (int i = 0; i < depth; ++i, x += op.x_step) {
      if (s + i >= steps) break;
      ahead.wait();
      track.step(s + i, i, ahead.slot(i));
      ahead.request(i, x, s + i + depth < steps);
      ahead.end_of_step();
    }
  }
}

// time == 1. Every load is on its way before the first is waited for: what every batch row reads
// goes before the rows of the state, behind whose check of bad rows no load may move up.
template <int kWidth, int V, class T>
__global__ void __launch_bounds__(step_threads)
    conv_step_kernel(const Operands<T> op, const Grid grid) {
  const unsigned thread = blockIdx.x * step_threads + threadIdx.x;
  let_next_begin();
  wait_for_previous();
  if (thread >= grid.threads) return;
  const std::int64_t channel = std::int64_t{thread % grid.groups} * V;
  const std::int64_t b = grid.first_row + thread / grid.groups;
  Track<kWidth, V, true, T> track(op, b, channel, 0);
  const auto input = Packed<T, V>::load(track.x);
  track.filter.load(op, channel);
  const StateRow<> row = state_row(op, b);
  track.load_initial(row, channel);
  track.only_step(row, channel, input);
}

}  // namespace mamba::cuda::conv
