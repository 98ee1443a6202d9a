// A Matmul of any operands at all: plain tiles, f32 sums in a fixed order. Correct for what
// cuBLASLt refuses; not tuned.
#pragma once

#include "kernels/matmul/matmul_operands.cuh"

namespace mamba::cuda {

constexpr int tile_side = 64;      // rows of x and of the weights a block multiplies
constexpr int tile_depth = 16;     // elements of `in` it has in shared memory
constexpr int tile_threads = 256;  // 16 x 16, each with 4 x 4 sums

// tile[d][i] = at(first + i, depth + d): row first + i of a matrix; zero outside.
template <class At>
__device__ void load_tile(float (&tile)[tile_depth][tile_side + 1], const At& at,
                          std::int64_t first, std::int64_t rows, std::int64_t depth,
                          std::int64_t in) {
  for (int i = static_cast<int>(threadIdx.x); i < tile_depth * tile_side; i += tile_threads) {
    const int d = i % tile_depth;
    const std::int64_t row = first + i / tile_depth;
    tile[d][i / tile_depth] = row < rows && depth + d < in ? at(row, depth + d) : 0.0f;
  }
}

template <class Load>
__global__ void __launch_bounds__(tile_threads) tiled_matmul_kernel(MatmulOperands<Load> op) {
  __shared__ float x[tile_depth][tile_side + 1];
  __shared__ float w[tile_depth][tile_side + 1];
  const std::int64_t across = (op.out + tile_side - 1) / tile_side;
  const std::int64_t first_row = blockIdx.x / across * tile_side;
  const std::int64_t first_column = blockIdx.x % across * tile_side;
  const int r = static_cast<int>(threadIdx.x) / 16;
  const int c = static_cast<int>(threadIdx.x) % 16;
  const auto x_at = [&](std::int64_t row, std::int64_t i) { return op.x_at(row, i); };
  const auto weight_at = [&](std::int64_t column, std::int64_t i) {
    return op.weight_at(column, i);
  };

  float sum[4][4] = {};
  for (std::int64_t depth = 0; depth < op.in; depth += tile_depth) {
    load_tile(x, x_at, first_row, op.rows, depth, op.in);
    load_tile(w, weight_at, first_column, op.out, depth, op.in);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < tile_depth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j] = fmaf(x[d][r + 16 * i], w[d][c + 16 * j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t row = first_row + r + 16 * i;
      const std::int64_t column = first_column + c + 16 * j;
      if (row < op.rows && column < op.out) op.finish(row, column, sum[i][j]);
    }
  }
}

}  // namespace mamba::cuda
