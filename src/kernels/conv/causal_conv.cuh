// What the kernels of CausalConv share: which state row a batch row stands for, and one step of the
// convolution. Every kernel computes a step with Filter::step, taps in the same order, so that it
// cannot matter where time is cut or which kernel ran.
#pragma once

#include "kernels/conv/causal_conv_operands.cuh"
#include "kernels/gpu/math.cuh"
#include "kernels/gpu/state_row.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda::conv {

// Of batch row b; tells the host of one that does not exist.
template <class T>
__device__ __forceinline__ StateRow<> state_row(const Operands<T>& op, std::int64_t b) {
  StateRow<> row{op.read != nullptr ? op.read[b] : b, op.write != nullptr ? op.write[b] : b, false,
                 false};
  row.padding = row.read < 0 && row.write < 0;
  row.bad = row.read >= op.state_rows || row.write >= op.state_rows;
  if (row.bad) *op.bad_row = 1;
  return row;
}

// The weights of V channels, in registers.
template <int kWidth, int V>
struct Filter {
  float weight[kWidth][V];
  float bias[V];

  template <class T>
  __device__ __forceinline__ void load(const Operands<T>& op, std::int64_t channel) {
    const float* from = op.weight + channel * op.weight_row;
    if (kWidth == 4 && op.wide_weights) {
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const Vec<float, 4> row = load_vec<4>(from + c * op.weight_row);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weight[k][c] = row.at[k % 4];
      }
    } else {
#pragma unroll
      for (int c = 0; c < V; ++c) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weight[k][c] = from[c * op.weight_row + k];
      }
    }
#pragma unroll
    for (int c = 0; c < V; ++c) bias[c] = op.bias != nullptr ? op.bias[channel + c] : 0;
  }

  // The output of the step whose input is `x`, which then takes the place of the oldest. `past` is
  // a ring whose oldest inputs are past[oldest]: with `oldest` a constant of an unrolled loop
  // nothing ever moves between registers.
  template <class T>
  __device__ __forceinline__ Packed<T, V> step(float (&past)[kWidth - 1][V], const float (&x)[V],
                                               int oldest, bool with_silu) const {
    float y[V];
#pragma unroll
    for (int c = 0; c < V; ++c) {
      y[c] = bias[c];
#pragma unroll
      for (int k = 0; k < kWidth - 1; ++k) {
        y[c] = fmaf(weight[k][c], past[(oldest + k) % (kWidth - 1)][c], y[c]);
      }
      y[c] = fmaf(weight[kWidth - 1][c], x[c], y[c]);
      past[oldest % (kWidth - 1)][c] = x[c];
      if (with_silu) y[c] = silu_approx(y[c]);
    }
    return Packed<T, V>::pack(y);
  }
};

// A state is [channel][past] in memory and a ring [past][channel] in registers: V channels are
// kPast whole vectors. Storage to float and back is exact.
template <int kPast, int V, class T>
__device__ __forceinline__ void load_state(const T* from, float (&past)[kPast][V]) {
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
    float part[V];
    Packed<T, V>::load(from + j * V).unpack(part);
#pragma unroll
    for (int i = 0; i < V; ++i) past[(j * V + i) % kPast][(j * V + i) / kPast] = part[i];
  }
}
template <int kPast, int V, class T>
__device__ __forceinline__ void store_state(const float (&past)[kPast][V], int oldest, T* to) {
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
    float part[V];
#pragma unroll
    for (int i = 0; i < V; ++i) part[i] = past[(oldest + j * V + i) % kPast][(j * V + i) / kPast];
    Packed<T, V>::pack(part).store(to + j * V);
  }
}
template <int kPast, int V>
__device__ __forceinline__ void clear(float (&past)[kPast][V], int count = kPast) {
#pragma unroll
  for (int k = 0; k < kPast; ++k) {
#pragma unroll
    for (int c = 0; c < V; ++c) past[k][c] = k < count ? 0 : past[k][c];
  }
}

}  // namespace mamba::cuda::conv
