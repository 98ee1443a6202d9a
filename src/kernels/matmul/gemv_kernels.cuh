// y = x weight^T + bias for a few rows of x. The weights are read once, and reading them is the
// whole cost: a block takes a few weight rows, its warps share their length, and shared memory adds
// up what the warps have. Every order of summation is fixed by `in` and the launch, so the bits are
// too.
#pragma once

#include <cstring>

#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/matmul/matmul_operands.cuh"

namespace mamba::cuda {

// The block as the two kernels below see it: warps [tiles][splits]; the warps of a tile share the
// length of its weight rows.
struct GemvWarp {
  int splits;
  int lane = static_cast<int>(threadIdx.x % 32);
  int warp = static_cast<int>(threadIdx.x / 32);
  int tile = warp / splits;
  int split = warp % splits;

  __device__ explicit GemvWarp(int splits_) : splits(splits_) {}
  // The first of `width` weight rows that belong to the warp's tile.
  __device__ std::int64_t first_column(int width) const {
    const int tiles = static_cast<int>(blockDim.x / 32) / splits;
    return (std::int64_t{blockIdx.x} * tiles + tile) * width;
  }
};

// y from what the warps have. sums: [tiles][splits][Rows][Columns]. All threads call it, after all
// have written their sums.
template <int Rows, int Columns, class Load>
__device__ void add_splits(const MatmulOperands<Load>& op, const GemvWarp& me, const float* sums) {
  __syncthreads();
  constexpr int size = Rows * Columns;
  const std::int64_t first = me.first_column(Columns);
  sums += me.tile * me.splits * size;
  for (int i = me.split * 32 + me.lane; i < size; i += me.splits * 32) {
    const std::int64_t row = i / Columns;
    const std::int64_t column = first + i % Columns;
    if (row >= op.rows || column >= op.out) continue;
    float sum = sums[i];
    for (int split = 1; split < me.splits; ++split) sum += sums[split * size + i];
    op.finish(row, column, sum);
  }
}

// ---- a few rows on the FMA units ----------------------------------------------------------------

// sum[r][c] += w[c] . x[r][k, k + N), in the order of k.
template <class Load, int N, int Rows, int Columns>
__device__ __forceinline__ void add_products(const Packed<typename Load::Stored, N> (&w)[Columns],
                                             const typename Load::T* const (&x)[Rows], int k,
                                             float (&sum)[Rows][Columns]) {
  Factors<typename Load::T, N> packed[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) packed[r] = Factors<typename Load::T, N>::load(x[r] + k);
  float v[Rows][N], weight[N];
#pragma unroll
  for (int r = 0; r < Rows; ++r) packed[r].unpack(v[r]);
#pragma unroll
  for (int c = 0; c < Columns; ++c) {
    Load::unpack(w[c], weight);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int i = 0; i < N; ++i) sum[r][c] = fmaf(weight[i], v[r][i], sum[r][c]);
    }
  }
}

// Any operands: N elements an access, Columns weight rows a tile, up to Rows rows of x. A warp
// reads 32 N elements of a weight row at a time: whole cache lines, which is what the memory is
// fastest at (1 row, bf16, 50280 x 768: 92 % of 4.28 TB/s).
template <class Load, int N, int Rows, int Columns>
__global__ void gemv_fma_kernel(MatmulOperands<Load> op, int splits, bool constant) {
  using T = typename Load::T;
  using Stored = typename Load::Stored;
  extern __shared__ float sums[];
  const GemvWarp me(splits);
  // Beyond the last row of x or of the weights: the last one again, and its result is dropped.
  const Stored* weight[Columns];
  const T* x[Rows];
#pragma unroll
  for (int c = 0; c < Columns; ++c) {
    weight[c] = op.weight.data + min(me.first_column(Columns) + c, op.out - 1) * op.weight_pitch;
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r) x[r] = op.x + op.x_rows.offset(min(std::int64_t{r}, op.rows - 1));

  const int in = static_cast<int>(op.in);
  let_next_begin();
  constexpr bool wide = N > 1;
  const bool early = wide && constant;  // the first round, often all there is
  const bool prefetches = wide && (!early || in > splits * 32 * N);
  if (prefetches && me.split == 0 && me.lane < Columns) {
    const std::int64_t column = min(me.first_column(Columns) + me.lane, op.out - 1);
    prefetch_to_l2(op.weight.data + column * op.weight_pitch, op.in * sizeof(Stored));
  }
  float sum[Rows][Columns] = {};
  int k = (me.split * 32 + me.lane) * N;
  Packed<Stored, N> w[Columns];
  wait_for_weights(early);
#pragma unroll
  for (int c = 0; c < Columns && k < in; ++c) {
    if constexpr (wide) {
      w[c] = load_early<N>(weight[c] + k);
    } else {
      w[c] = load_once<N>(weight[c] + k);
    }
  }
  wait_for_previous();
  if (k < in) add_products<Load>(w, x, k, sum);
#pragma unroll 2
  for (k += splits * 32 * N; k < in; k += splits * 32 * N) {
#pragma unroll
    for (int c = 0; c < Columns; ++c) w[c] = load_once<N>(weight[c] + k);
    add_products<Load>(w, x, k, sum);
  }

#pragma unroll
  for (int r = 0; r < Rows; ++r) {
#pragma unroll
    for (int c = 0; c < Columns; ++c) {
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        sum[r][c] += __shfl_xor_sync(all_lanes, sum[r][c], distance);
      }
      if (me.lane == 0) sums[(me.warp * Rows + r) * Columns + c] = sum[r][c];
    }
  }
  add_splits<Rows, Columns>(op, me, sums);
}

// ---- up to eight rows on the tensor cores -------------------------------------------------------

constexpr int gemv_mma_columns = 8;
// Elements of a weight row that a warp takes at a time: 128 bytes.
constexpr int gemv_mma_step = 64;

// 16-bit operands, 16-byte aligned: 8 weight rows a tile, up to 8 rows of x. (f32 would be rounded
// to tf32 on the way in.)
//
// In a fragment, lane 4 g + q holds row g, of x or of the weights, at depths of q's choice; a sum
// does not mind which, as long as both factors choose alike. So each lane takes 8 elements in a row
// of the 32 that the four lanes of a row read together: its first four are one product of depth 16,
// its last four another. No weight is converted and no lane adds up with its neighbours. Its reads
// are pieces of eight rows, which costs bandwidth: it pays from 5 rows of x, on weights that are
// small anyway.
template <class Load>
__global__ void gemv_mma_kernel(MatmulOperands<Load> op, int splits, bool constant) {
  using T = typename Load::T;
  using Stored = typename Load::Stored;
  using Eight = typename Load::Eight;
  constexpr int size = 8 * gemv_mma_columns;
  extern __shared__ float sums[];
  const GemvWarp me(splits);
  const int group = me.lane / 4;
  const int quarter = me.lane % 4;
  // Beyond the last row of x or of the weights: the last one again, and its result is dropped.
  const std::int64_t column = min(me.first_column(gemv_mma_columns) + group, op.out - 1);
  const Stored* weight = op.weight.data + column * op.weight_pitch + quarter * 8;
  const T* x = op.x + op.x_rows.offset(min(std::int64_t{group}, op.rows - 1)) + quarter * 8;

  const int in = static_cast<int>(op.in);
  let_next_begin();
  if (me.split == 0 && quarter == 0) prefetch_to_l2(weight, op.in * sizeof(Stored));
  const auto inside = [&](int at) { return at + quarter * 8 < in; };
  int k = me.split * gemv_mma_step;
  Eight first[2];
  wait_for_weights(constant);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = k + half * 32;
    first[half] = inside(at) ? load_early<8>(weight + at) : Eight{};
  }
  wait_for_previous();
  // The instruction has 16 rows of x and of the sums; the other eight are zero.
  float sum[4][4] = {};  // four chains of dependent products, so that their latencies overlap
  for (bool begun = false; k < in; k += splits * gemv_mma_step, begun = true) {
    Eight eight[2] = {first[0], first[1]};
    uint4 v[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = k + half * 32;
      if (begun) eight[half] = inside(at) ? load_once<8>(weight + at) : Eight{};
      v[half] = inside(at) ? *reinterpret_cast<const uint4*>(x + at) : uint4{};
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 w = Load::fragment(eight[half]);
      mma<T>(sum[2 * half], v[half].x, 0, v[half].y, 0, w.x, w.y);
      mma<T>(sum[2 * half + 1], v[half].z, 0, v[half].w, 0, w.z, w.w);
    }
  }
  float2 pair;  // of row g: columns 2 q and 2 q + 1
  pair.x = (sum[0][0] + sum[1][0]) + (sum[2][0] + sum[3][0]);
  pair.y = (sum[0][1] + sum[1][1]) + (sum[2][1] + sum[3][1]);
  *reinterpret_cast<float2*>(sums + me.warp * size + me.lane * 2) = pair;
  add_splits<8, gemv_mma_columns>(op, me, sums);
}

}  // namespace mamba::cuda
