// CausalConvGrad of a few taps in one pass: x and dy are read once and dx is written once. A thread
// walks V neighbouring channels forward through a tile of time. The gradient g = dy silu'(.) of a
// step goes to the inputs that the step has seen, whose sums wait in a ring until the last step
// that sees them; so a tile goes on past its end for that many steps, which the next tile computes
// too. The gradients of the weights are summed over the tile, then over the 8 tiles of the block's
// warps, and written for the second stage (column_sums.cuh).
#pragma once

#include "kernels/conv/causal_conv_grad.cuh"
#include "kernels/conv/causal_conv_tile.cuh"
#include "kernels/gpu/column_sums.cuh"

namespace mamba::cuda::conv {

constexpr int grad_warps = tile_threads / 32;  // each has a tile of the same 32 V channels

// Blocks are numbered by channels, then by tiles, then by batch rows.
struct GradGrid {
  std::int64_t tile;        // steps
  std::int64_t tiles;       // of one batch row
  unsigned channel_blocks;  // of 32 V channels
  unsigned tile_blocks;     // of grad_warps tiles
};

// One thread's part of the work. Without kExtras there is SiLU and there are no resets; with it,
// the operands say.
template <int kWidth, int V, bool kExtras, class T>
struct GradTrack {
  static constexpr int kPast = kWidth - 1;
  const GradOperands<T>& op;
  Track<kWidth, V, kExtras, T> forward;  // the inputs before the step to come, and the filter
  T* dx;                                 // of the step kPast before the step to come
  std::int64_t state;                    // where the state of the first channel begins
  float dpast[kPast][V] = {};            // what the inputs before the step to come have received
  int since = kPast;                     // steps since a reset, kPast if that is too long ago

  __device__ __forceinline__ GradTrack(const GradOperands<T>& operands, std::int64_t b,
                                       std::int64_t c, std::int64_t t)
      : op(operands),
        forward(operands.of, b, c, t),
        dx(operands.dx + b * operands.dx_row + (t - kPast) * operands.dx_step + c),
        state((b * operands.of.channels + c) * kPast) {}

  // The gradient with respect to the sum of taps that `x` completes; `oldest` as in Filter::step.
  __device__ __forceinline__ void gradient(const float (&x)[V], int oldest, const float (&dy)[V],
                                           float (&g)[V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) g[c] = dy[c];
    if (kExtras && !op.of.silu) return;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      float p = forward.filter.bias[c];
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
        p = fmaf(forward.filter.weight[k][c], forward.past[(oldest + k) % kPast][c], p);
      }
      p = fmaf(forward.filter.weight[kPast][c], x[c], p);
      g[c] = silu_grad<T>(p, dy[c]);
    }
  }

  // Adds to the gradients of the taps and, last, of the bias.
  __device__ __forceinline__ void sum(const float (&x)[V], int oldest, const float (&g)[V],
                                      float (&sums)[kWidth + 1][V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) {
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
        sums[k][c] = fmaf(g[c], forward.past[(oldest + k) % kPast][c], sums[k][c]);
      }
      sums[kPast][c] = fmaf(g[c], x[c], sums[kPast][c]);
      sums[kWidth][c] += g[c];
    }
  }

  // Gives g to the inputs that the step has seen. The oldest of them has then received everything:
  // `done`; the step's own input takes its place.
  __device__ __forceinline__ void give(const float (&x)[V], int oldest, const float (&g)[V],
                                       float (&done)[V]) {
#pragma unroll
    for (int c = 0; c < V; ++c) {
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
        if (kExtras && kPast - k > since) continue;
        float& received = dpast[(oldest + k) % kPast][c];
        received = fmaf(forward.filter.weight[k][c], g[c], received);
      }
      done[c] = dpast[oldest % kPast][c];
      dpast[oldest % kPast][c] = forward.filter.weight[kPast][c] * g[c];
      forward.past[oldest % kPast][c] = x[c];
    }
    if (kExtras) since = min(since + 1, kPast);
  }

  // What the final state gives to the input that is its element j; no step comes after.
  __device__ __forceinline__ void give_final(int j, int oldest, float (&done)[V]) const {
#pragma unroll
    for (int c = 0; c < V; ++c) {
      done[c] = dpast[oldest % kPast][c];
      // `since` counts from the step after the last: input j is kPast - j steps before that one.
      if (op.dfinal == nullptr || (kExtras && kPast - j > since)) continue;
      done[c] += to_float(op.dfinal[state + c * kPast + j]);
    }
  }

  __device__ __forceinline__ void store_initial(int j, const float (&done)[V]) const {
    if (op.dinitial == nullptr) return;
#pragma unroll
    for (int c = 0; c < V; ++c) op.dinitial[state + c * kPast + j] = from_float<T>(done[c]);
  }
};

// A tile of `own` steps from t on, of which the last may be followed by fewer than kPast others.
template <int kWidth, int V, bool kExtras, class T>
struct TileWalk {
  static constexpr int kPast = kWidth - 1;
  GradTrack<kWidth, V, kExtras, T> track;
  const GradOperands<T>& op;
  const T* x;  // of the step to be requested next
  const T* dy;
  Ahead<V, T, 0> x_ahead;
  Ahead<V, T, 1> dy_ahead;
  std::int64_t t;
  int own, inside;  // steps of the tile, and with those after it that the sequence has

  __device__ __forceinline__ TileWalk(const GradOperands<T>& operands, std::int64_t b,
                                      std::int64_t channel, std::int64_t first, std::int64_t tile)
      : track(operands, b, channel, first),
        op(operands),
        x(track.forward.x),
        dy(operands.dy + b * operands.dy_row + first * operands.dy_step + channel),
        t(first),
        own(static_cast<int>(min(tile, operands.of.time - first))),
        inside(static_cast<int>(min(tile + kPast, operands.of.time - first))) {}

  __device__ __forceinline__ void request(int i, bool wanted) {
    x_ahead.request(i, x, wanted);
    dy_ahead.request(i, dy, wanted);
    x_ahead.end_of_step();
    x += op.of.x_step;
    dy += op.dy_step;
  }

  // Step s + i of the tile, i the place in the rings. kInner: it is known to be one of the tile's
  // own, and not of the first kPast.
  template <bool kInner>
  __device__ __forceinline__ void step(int s, int i, float (&sums)[kWidth + 1][V]) {
    float done[V];
    x_ahead.wait();
    if (kInner || s + i < inside) {
      float input[V], dy_step[V], g[V];
      x_ahead.slot(i).unpack(input);
      dy_ahead.slot(i).unpack(dy_step);
      if (kExtras && track.forward.resets_at(s + i)) {
        clear(track.forward.past);
        track.since = 0;
      }
      track.gradient(input, i, dy_step, g);
      if (kInner || s + i < own) track.sum(input, i, g, sums);
      track.give(input, i, g, done);
    } else {
      track.give_final(static_cast<int>(t + s + i - op.of.time), i, done);
    }
    request(i, s + i + depth < inside);
    if (kInner || s + i >= kPast) {
      Packed<T, V>::pack(done).store(track.dx);
    } else if (t == 0) {
      track.store_initial(s + i, done);
    }
    track.dx += op.dx_step;
  }

  __device__ __forceinline__ void run(std::int64_t b, std::int64_t channel,
                                      float (&sums)[kWidth + 1][V]) {
#pragma unroll
    for (int i = 0; i < depth; ++i) request(i, i < inside);
    if (t > 0) {
      track.forward.load_past(0, track.forward.past);
    } else {
      track.forward.load_initial(state_row(op.of, b), channel);
    }
    track.forward.filter.load(op.of, channel);
#pragma unroll 1
    for (int s = 0; s < own + kPast; s += depth) {
      if (s > 0 && s + depth <= own) {
#pragma unroll
        for (int i = 0; i < depth; ++i) step<true>(s, i, sums);
      } else {
#pragma unroll
        for (int i = 0; i < depth; ++i) {
          if (s + i < own + kPast) step<false>(s, i, sums);
        }
      }
    }
  }
};

// partials [parts, kWidth + 1, channels], a part for every block of a channel; may be nullptr.
template <int kWidth, int V, bool kExtras, class T>
__global__ void __launch_bounds__(tile_threads, 2)
    conv_grad_tile_kernel(const GradOperands<T> op, const GradGrid grid, float* partials) {
  const std::int64_t first = std::int64_t{blockIdx.x % grid.channel_blocks} * (32 * V);
  const std::int64_t channel = first + threadIdx.x % 32 * V;
  const unsigned part = blockIdx.x / grid.channel_blocks;
  const std::int64_t b = part / grid.tile_blocks;
  const std::int64_t tile = std::int64_t{part % grid.tile_blocks} * grad_warps + threadIdx.x / 32;
  float sums[kWidth + 1][V] = {};
  if (channel < op.of.channels && tile < grid.tiles) {
    TileWalk<kWidth, V, kExtras, T> walk(op, b, channel, tile * grid.tile, grid.tile);
    walk.run(b, channel, sums);
  }
  if (partials == nullptr) return;
  store_block_sums<grad_warps>(sums, partials + std::int64_t{part} * (kWidth + 1) * op.of.channels,
                               first, op.of.channels);
}

}  // namespace mamba::cuda::conv
