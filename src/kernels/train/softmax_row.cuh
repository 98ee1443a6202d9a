// The softmax of a row that several threads share (see row_sums.cuh): its largest value and the sum
// of exponentials, found in one pass.
#pragma once

#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/row_sums.cuh"

namespace mamba::cuda {

struct SoftmaxSum {
  float largest = -INFINITY;
  float sum = 0;  // of exp(value - largest)

  __device__ __forceinline__ void add(const SoftmaxSum& other) {
    const float larger = fmaxf(largest, other.largest);
    if (larger == -INFINITY) {  // nothing but minus infinity so far, whose difference is NaN
      sum += other.sum;
      return;
    }
    sum = sum * expf(largest - larger) + other.sum * expf(other.largest - larger);
    largest = larger;
  }
  template <int V>
  __device__ __forceinline__ void add(const float (&values)[V]) {
    float larger = largest;
#pragma unroll
    for (int v = 0; v < V; ++v) larger = fmaxf(larger, values[v]);
    const float shift = larger == -INFINITY ? 0 : larger;
    sum *= expf(largest - shift);
#pragma unroll
    for (int v = 0; v < V; ++v) sum += expf(values[v] - shift);
    largest = larger;
  }
  // log p of a value. In this order nothing is lost where values are large and close together.
  __device__ __forceinline__ float log_p(float value) const {
    return (value - largest) - logf(sum);
  }
};

// Of all threads of a row, in each of them, always in the same order. All threads of the block take
// part.
__device__ __forceinline__ SoftmaxSum combine_over_row(SoftmaxSum mine, int lanes) {
  for (int offset = min(lanes, 32) / 2; offset > 0; offset /= 2) {
    mine.add(SoftmaxSum{__shfl_xor_sync(all_lanes, mine.largest, offset),
                        __shfl_xor_sync(all_lanes, mine.sum, offset)});
  }
  if (lanes <= 32) return mine;
  __shared__ float2 warps[row_block_largest / 32];
  __syncthreads();  // those before may still be read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = {mine.largest, mine.sum};
  __syncthreads();
  mine = SoftmaxSum{warps[0].x, warps[0].y};
  for (int w = 1; w < lanes / 32; ++w) mine.add(SoftmaxSum{warps[w].x, warps[w].y});
  return mine;
}

}  // namespace mamba::cuda
