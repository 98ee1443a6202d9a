// Sums over rows for each column, in an order that depends on shapes alone: blocks sum parts of the
// rows, then a second kernel adds the parts up, first to last. No atomics: the same bits every
// time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

// ---- the first stage ----------------------------------------------------------------------------

constexpr int column_warps = 8;  // of a block; each takes every eighth row of a part
constexpr int column_threads = 32 * column_warps;

struct ColumnParts {
  std::int64_t rows, columns;
  std::int64_t part_rows;  // rows of a part
  std::int64_t parts;

  // Enough parts for the chip; none shorter than 4 rows to a warp.
  ColumnParts(std::int64_t row_count, std::int64_t column_count, int V)
      : rows(row_count), columns(column_count) {
    constexpr std::int64_t enough_blocks = 1024;
    const std::int64_t wanted =
        divide_up(enough_blocks, std::max<std::int64_t>(blocks_across(V), 1));
    part_rows = std::max<std::int64_t>(divide_up(rows, wanted), 4 * column_warps);
    parts = std::max<std::int64_t>(divide_up(rows, part_rows), 1);
  }
  std::int64_t blocks_across(int V) const { return divide_up(columns, 32 * V); }
};

// The sums of a block's warps, in order, to partials[n, column]; `sums` are those of V neighbouring
// columns from `first + lane V` on. All threads of the block take part.
template <int kWarps, int N, int V>
__device__ __forceinline__ void store_block_sums(const float (&sums)[N][V], float* partials,
                                                 std::int64_t first, std::int64_t columns) {
  __shared__ float memory[kWarps][32 * V];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n > 0) __syncthreads();
#pragma unroll
    for (int v = 0; v < V; ++v) memory[warp][v * 32 + lane] = sums[n][v];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < 32 * V; i += 32 * kWarps) {
      const std::int64_t column = first + (i % 32) * V + i / 32;
      float sum = memory[0][i];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += memory[w][i];
      if (column < columns) partials[n * columns + column] = sum;
    }
  }
}

// partials[part, n, column] = the sum over the part's rows of what value.add(row, column, sums)
// adds to sums[n].
template <int V, int N, class Value>
__global__ void __launch_bounds__(column_threads)
    column_sums_kernel(const Value value, const ColumnParts parts, float* partials) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t across = (parts.columns + 32 * V - 1) / (32 * V);
  const std::int64_t first = blockIdx.x % across * 32 * V;
  const std::int64_t part = blockIdx.x / across;
  const std::int64_t column = first + lane * V;
  const std::int64_t begin = part * parts.part_rows;
  const std::int64_t end = min(begin + parts.part_rows, parts.rows);
  float sums[N][V] = {};
  if (column < parts.columns) {
#pragma unroll 4
    for (std::int64_t row = begin + warp; row < end; row += column_warps) {
      value.add(row, column, sums);
    }
  }
  store_block_sums<column_warps>(sums, partials + part * N * parts.columns, first, parts.columns);
}

// ---- the second stage ---------------------------------------------------------------------------

constexpr int part_groups = 16;  // of 32 threads, one to a column; each takes every sixteenth part

// put(column, sum of partials[:, column])
template <class Put>
__global__ void __launch_bounds__(32 * part_groups)
    sum_parts_kernel(const float* partials, std::int64_t parts, std::int64_t columns,
                     const Put put) {
  __shared__ float memory[part_groups][32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t column = std::int64_t{blockIdx.x} * 32 + lane;
  float sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (std::int64_t part = group; part < parts; part += part_groups) {
      sum += partials[part * columns + column];
    }
  }
  memory[group][lane] = sum;
  __syncthreads();
  if (group != 0 || column >= columns) return;
#pragma unroll
  for (int g = 1; g < part_groups; ++g) sum += memory[g][lane];
  put(column, sum);
}

// Where the sums of N rows of columns go: to[n][column], each pointer may be nullptr.
template <int N>
struct PutRows {
  float* to[N];
  std::int64_t columns;
  bool accumulate;

  __device__ void operator()(std::int64_t i, float sum) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const std::int64_t column = i - n * columns;
      if (to[n] == nullptr || column < 0 || column >= columns) continue;
      to[n][column] = accumulate ? to[n][column] + sum : sum;
    }
  }
};

template <class Put>
void sum_parts(const float* partials, std::int64_t parts, std::int64_t columns, const Put& put,
               Stream& stream, const char* where) {
  if (columns == 0) return;
  const auto blocks = static_cast<unsigned>(divide_up(columns, 32));
  launch(sum_parts_kernel<Put>, blocks, 32 * part_groups, 0, stream, where, partials, parts,
         columns, put);
}

// Both stages: put.to[n][column] is, or is added, the sum over all rows.
template <int V, int N, class Value>
void sum_columns(const Value& value, std::int64_t rows, const PutRows<N>& put, Stream& stream,
                 const char* where) {
  if (put.columns == 0) return;
  Scratch scratch(stream);
  const ColumnParts parts(rows, put.columns, V);
  float* partials =
      scratch.take(Shape{parts.parts, N * put.columns}, DType::f32).template data<float>();
  const auto blocks = static_cast<unsigned>(parts.blocks_across(V) * parts.parts);
  launch(column_sums_kernel<V, N, Value>, blocks, column_threads, 0, stream, where, value, parts,
         partials);
  sum_parts(partials, parts.parts, N * put.columns, put, stream, where);
}

}  // namespace mamba::cuda
