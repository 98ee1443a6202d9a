// What a block of threads computes together at every step of a rollout: products with weights that
// stay in registers, and sums over the block.
#pragma once

#include "rl/cuda.cuh"

namespace mamba_rl::cuda {

constexpr int warp = 32;
constexpr unsigned all_lanes = 0xffffffffu;

// The sum over neighbouring lanes, `first`, 2 first, ..., up to `count` apart, known to all.
template <int count, int first = 1>
__device__ __forceinline__ float sum_over(float value) {
#pragma unroll
  for (int apart = first; apart < count; apart *= 2) {
    value += __shfl_xor_sync(all_lanes, value, apart);
  }
  return value;
}

template <int V>
struct alignas(V * sizeof(float)) Floats {
  float at[V];
};

// y = W x of a [rows, columns] matrix. `lanes` neighbouring threads have a row, and each of them
// every lanes-th group of V of its columns, so that x is read without bank conflicts.
template <int rows, int columns, int threads>
struct RegisterMatrix {
  static constexpr int widest = 8;
  static constexpr int lanes = rows * widest <= threads ? widest
                               : rows * 4 <= threads    ? 4
                               : rows * 2 <= threads    ? 2
                                                        : 1;
  static constexpr int V = columns / lanes < 4 ? columns / lanes : 4;
  static constexpr int groups = columns / lanes / V;
  static_assert(groups * lanes * V == columns, "every column has a thread");

  Floats<V> weight[groups];

  __device__ static int row() { return static_cast<int>(threadIdx.x) / lanes; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % lanes; }

  __device__ __forceinline__ void load(const float* from) {
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      weight[g] =
          row() < rows
              ? reinterpret_cast<const Floats<V>*>(from + row() * columns)[g * lanes + lane()]
              : Floats<V>{};
    }
  }
  // Of this thread's row; x [columns] in shared memory, 16-byte aligned.
  __device__ __forceinline__ float times(const float* x) const {
    float sums[V] = {};
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const Floats<V> operand = reinterpret_cast<const Floats<V>*>(x)[g * lanes + lane()];
#pragma unroll
      for (int v = 0; v < V; ++v) sums[v] = fmaf(weight[g].at[v], operand.at[v], sums[v]);
    }
    float sum = sums[0];
#pragma unroll
    for (int v = 1; v < V; ++v) sum += sums[v];
    return sum_over<lanes>(sum);
  }
};

// The sum of all threads' values, each of which `copies` neighbours have alike. `parts` is not
// used again before another barrier.
template <int threads, int copies>
__device__ __forceinline__ float block_sum(float value, float* parts) {
  value = sum_over<warp, copies>(value);
  if (threadIdx.x % warp == 0) parts[threadIdx.x / warp] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < threads / warp; ++i) sum += parts[i];
  return sum;
}

// LayerNorm without weight and bias.
template <int threads, int copies>
__device__ __forceinline__ float block_normalise(float value, float epsilon,
                                                 float (*parts)[threads / warp]) {
  constexpr float count = threads / copies;
  const float off = value - block_sum<threads, copies>(value, parts[0]) / count;
  const float variance = block_sum<threads, copies>(off * off, parts[1]) / count;
  return off / sqrtf(variance + epsilon);
}

}  // namespace mamba_rl::cuda
