// y = x weight^T + bias for any operands at all: plain tiles, f32 sums in a fixed order. Correct
// for what cuBLASLt refuses; not tuned.
#pragma once

#include "kernels/matmul_operands.cuh"

namespace mamba::cuda {

constexpr int tile_side = 64;      // rows of x and of the weights a block multiplies
constexpr int tile_depth = 16;     // elements of `in` it has in shared memory
constexpr int tile_threads = 256;  // 16 x 16, each with 4 x 4 sums

// tile[d][i] = row first + i of a matrix, element depth + d; zero outside.
template <class T, class Row>
__device__ void load_tile(float (&tile)[tile_depth][tile_side + 1], const T* matrix, Row row_at,
                          std::int64_t first, std::int64_t rows, std::int64_t depth,
                          std::int64_t in) {
  for (int i = static_cast<int>(threadIdx.x); i < tile_depth * tile_side; i += tile_threads) {
    const int d = i % tile_depth;
    const std::int64_t row = first + i / tile_depth;
    const bool inside = row < rows && depth + d < in;
    tile[d][i / tile_depth] = inside ? to_float(matrix[row_at(row) + depth + d]) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(tile_threads) tiled_matmul_kernel(MatmulOperands<T> op) {
  __shared__ float x[tile_depth][tile_side + 1];
  __shared__ float w[tile_depth][tile_side + 1];
  const std::int64_t across = (op.out + tile_side - 1) / tile_side;
  const std::int64_t first_row = blockIdx.x / across * tile_side;
  const std::int64_t first_column = blockIdx.x % across * tile_side;
  const int r = static_cast<int>(threadIdx.x) / 16;
  const int c = static_cast<int>(threadIdx.x) % 16;
  const auto weight_row = [&](std::int64_t row) { return row * op.weight_pitch; };

  float sum[4][4] = {};
  for (std::int64_t depth = 0; depth < op.in; depth += tile_depth) {
    load_tile(x, op.x, op.x_row, first_row, op.rows, depth, op.in);
    load_tile(w, op.weight, weight_row, first_column, op.out, depth, op.in);
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
