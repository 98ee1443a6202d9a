// What the gradients of the norms share: a row is read to sum what its gradient needs, then once
// more, from the cache, to compute it; and on the way each thread sums the gradients of the weights
// over the rows that its block takes, for its own columns. The blocks' sums are added up by a
// second kernel, in order (column_sums.cuh).
//
// A Norm says how a row is computed:
//   Norm::Sums                                    what finish() needs to know of the whole row
//   norm.sums<V>(row, inside, lane, lanes)        by all threads of the block together
//   norm.finish<V>(row, column, sums, added)      V columns; adds to the gradients of N weights
//   norm.prefetch(row, column)                    brings near what a row will be asked for
#pragma once

#include "kernels/gpu/column_sums.cuh"
#include "kernels/gpu/row_sums.cuh"

namespace mamba::cuda {

struct RowGrid {
  std::int64_t rows, channels;
  int lanes;
  bool in_shared;   // the sums over rows are kept in shared memory, else in the partials themselves
  float* partials;  // [blocks, N, channels]; nullptr: not wanted
};

template <int V, int N, class Norm>
__global__ void __launch_bounds__(row_block_largest, 2)
    norm_grad_kernel(const Norm norm, const RowGrid grid) {
  extern __shared__ float shared[];  // [rows of the block at once, N, channels]
  const int lane = static_cast<int>(threadIdx.x) % grid.lanes;
  const int sub = static_cast<int>(threadIdx.x) / grid.lanes;
  const int at_once = static_cast<int>(blockDim.x) / grid.lanes;
  const std::int64_t stride = std::int64_t{grid.lanes} * V;
  float* partial = grid.partials + blockIdx.x * N * grid.channels;
  float* own = grid.in_shared ? shared + sub * N * grid.channels : partial;
  const bool summed = grid.partials != nullptr;
  if (summed) {
    for (std::int64_t c = std::int64_t{lane} * V; c < grid.channels; c += stride) {
#pragma unroll
      for (int n = 0; n < N * V; ++n) own[n / V * grid.channels + c + n % V] = 0;
    }
  }
#pragma unroll 1
  for (std::int64_t first = std::int64_t{blockIdx.x} * at_once; first < grid.rows;
       first += std::int64_t{gridDim.x} * at_once) {
    const std::int64_t row = first + sub;
    const bool inside = row < grid.rows;  // threads outside take part in the sums
    // Between its passes over a row a block waits; meanwhile its next row comes to L2, where a line
    // is asked for once in f32 and twice in 16 bits.
    const std::int64_t next = row + std::int64_t{gridDim.x} * at_once;
    for (std::int64_t c = std::int64_t{lane} * V; c < grid.channels; c += stride) {
      if (c % 32 == 0 && next < grid.rows) norm.prefetch(next, c);
    }
    const typename Norm::Sums sums = norm.template sums<V>(row, inside, lane, grid.lanes);
    if (!inside) continue;
#pragma unroll 1
    for (std::int64_t c = std::int64_t{lane} * V; c < grid.channels; c += stride) {
      float added[N][V] = {};
      norm.template finish<V>(row, c, sums, added);
      if (!summed) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) {
#pragma unroll
        for (int v = 0; v < V; ++v) own[n * grid.channels + c + v] += added[n][v];
      }
    }
  }
  if (!summed || !grid.in_shared) return;
  __syncthreads();
  const std::int64_t columns = N * grid.channels;
  for (std::int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
    float sum = shared[i];
    for (int s = 1; s < at_once; ++s) sum += shared[s * columns + i];
    partial[i] = sum;
  }
}

// put.to[n] may all be nullptr. Every row of the operands is aligned for vectors of V.
template <int V, int N, class Norm>
void run_norm_grad(const Norm& norm, std::int64_t rows, const PutRows<N>& put, Stream& stream,
                   const char* where) {
  const RowBlocks spread(put.columns, V, 2);
  constexpr std::int64_t most_blocks = 1024;
  const std::int64_t blocks =
      std::clamp<std::int64_t>(divide_up(rows, spread.rows()), 1, most_blocks);
  const std::int64_t columns = N * put.columns;
  RowGrid grid{rows, put.columns, spread.lanes, false, nullptr};
  Scratch scratch(stream);
  std::size_t shared = 0;
  if (std::any_of(put.to, put.to + N, [](const float* to) { return to != nullptr; })) {
    constexpr std::int64_t most_shared = 40 << 10;  // of the 48 KB that a launch has unasked
    const std::int64_t bytes = spread.rows() * columns * std::int64_t{sizeof(float)};
    grid.partials = scratch.take(Shape{blocks, columns}, DType::f32).template data<float>();
    grid.in_shared = bytes <= most_shared;
    if (grid.in_shared) shared = static_cast<std::size_t>(bytes);
  }
  launch(norm_grad_kernel<V, N, Norm>, static_cast<unsigned>(blocks), spread.threads, shared,
         stream, where, norm, grid);
  if (grid.partials != nullptr) sum_parts(grid.partials, blocks, columns, put, stream, where);
}

}  // namespace mamba::cuda
