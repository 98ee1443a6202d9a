// Rows that `lanes` threads share: a part of a warp for short rows, several of which are then in
// one block, or a whole block.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/rows.cuh"

namespace mamba::cuda {

constexpr int row_block_small = 128;    // threads, where a row needs no more than a warp
constexpr int row_block_largest = 512;  // where one row has a block

// The sums over the `lanes` threads of a row, in each of them. Butterflies first, then the warps in
// order: the same order every time. All threads of the block take part.
template <int N>
__device__ __forceinline__ void sum_over_row(float (&values)[N], int lanes) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    for (int offset = min(lanes, 32) / 2; offset > 0; offset /= 2) {
      values[n] += __shfl_xor_sync(all_lanes, values[n], offset);
    }
  }
  if (lanes <= 32) return;
  __shared__ float warps[N][row_block_largest / 32];
  __syncthreads();  // the sums before may still be read
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (threadIdx.x % 32 == 0) warps[n][threadIdx.x / 32] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
    for (int w = 0; w < lanes / 32; ++w) values[n] += warps[n][w];
  }
}

// How rows of `channels` in vectors of V are spread over blocks.
struct RowBlocks {
  int lanes;    // threads of a row
  int threads;  // of a block

  RowBlocks(std::int64_t channels, int V, int vectors_per_thread) {
    const std::int64_t needed = divide_up(divide_up(channels, V), vectors_per_thread);
    lanes =
        needed <= 32
            ? lanes_per_row(needed, 32)
            : static_cast<int>(divide_up(std::min<std::int64_t>(needed, row_block_largest), 32)) *
                  32;
    threads = lanes <= 32 ? row_block_small : lanes;
  }
  int rows() const { return threads / lanes; }  // of a block at once
};

}  // namespace mamba::cuda
