// y = x weight^T + bias for a few rows of x. The weights are read once, and reading them is the
// whole cost: a block takes a few weight rows, its warps share their length, and shared memory adds
// up what the warps have. Every order of summation is fixed by `in` and the launch, so the bits are
// too.
#pragma once

#include "kernels/matmul_operands.cuh"

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

// sums: [tiles][splits][Rows][Columns]. All threads call it, after all have written their sums.
template <int Rows, int Columns, class T>
__device__ void add_splits(const MatmulOperands<T>& op, const GemvWarp& me, const float* sums) {
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

// 16 bytes of weights, which nobody reads again: they need no place in L1.
__device__ __forceinline__ uint4 load_once(const void* from) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(from));
  return value;
}

// d[16 x 8] += a[16 x 16] b[16 x 8] on the tensor cores: bf16 or f16 products, f32 sums.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                    std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// 16-bit operands, 16-byte aligned: 8 weight rows a tile, up to 8 * Halves rows of x.
//
// The tensor cores are used for what they save around the sums: no weight is converted, and no lane
// adds up with its neighbours. In a fragment, lane 4 g + q holds row g (of x and of the weights) at
// some elements k of q's choice; a sum does not mind which, as long as both factors choose alike.
// So each lane takes 8 elements in a row, 16 bytes, of 32 that the four lanes of a row read
// together: its first four are one product of depth 16, its last four another.
template <class T, int Halves, int Unroll>
__global__ void gemv_mma_kernel(MatmulOperands<T> op, int splits) {
  constexpr int step = 32;
  constexpr int columns = 8;
  extern __shared__ float sums[];
  const GemvWarp me(splits);
  const int group = me.lane / 4;
  const int quarter = me.lane % 4;
  // Beyond the last row of x or of the weights: the last one again, and its result is dropped.
  const std::int64_t column = min(me.first_column(columns) + group, op.out - 1);
  const T* weight = op.weight + column * op.weight_pitch;
  const T* x[Halves];
#pragma unroll
  for (int h = 0; h < Halves; ++h)
    x[h] = op.x + op.x_row(min(std::int64_t{h} * 8 + group, op.rows - 1));

  float sum[4][4] = {};  // four chains of dependent products, so that their latencies overlap
  const int in = static_cast<int>(op.in);
  const int stride = splits * step;
  for (int k = me.split * step + quarter * 8; k < in + quarter * 8; k += Unroll * stride) {
    uint4 w[Unroll];
    uint4 v[Unroll][Halves];
#pragma unroll
    for (int u = 0; u < Unroll; ++u) {
      const int at = k + u * stride;
      const bool inside = at < in;
      w[u] = inside ? load_once(weight + at) : uint4{};
#pragma unroll
      for (int h = 0; h < Halves; ++h) {
        v[u][h] = inside ? *reinterpret_cast<const uint4*>(x[h] + at) : uint4{};
      }
    }
#pragma unroll
    for (int u = 0; u < Unroll; ++u) {
      const uint4 low = v[u][0];
      const uint4 high = Halves == 2 ? v[u][Halves - 1] : uint4{};
      mma<T>(sum[u % 2 * 2], low.x, high.x, low.y, high.y, w[u].x, w[u].y);
      mma<T>(sum[u % 2 * 2 + 1], low.z, high.z, low.w, high.w, w[u].z, w[u].w);
    }
  }

  float* mine = sums + me.warp * (8 * Halves * columns) + me.lane * 2;
#pragma unroll
  for (int h = 0; h < Halves; ++h) {
    float2 pair;  // row g + 8 h, columns 2 q and 2 q + 1
    pair.x = (sum[0][2 * h] + sum[1][2 * h]) + (sum[2][2 * h] + sum[3][2 * h]);
    pair.y = (sum[0][2 * h + 1] + sum[1][2 * h + 1]) + (sum[2][2 * h + 1] + sum[3][2 * h + 1]);
    *reinterpret_cast<float2*>(mine + h * 8 * columns) = pair;
  }
  add_splits<8 * Halves, columns>(op, me, sums);
}

constexpr int gemv_fma_columns = 4;

// Any operands: N elements an access, 4 weight rows a tile (so that a row of x, from L1, is read
// once for four), up to Rows rows of x. f32 comes here because the tensor cores would round it to
// tf32.
template <class T, int N, int Rows>
__global__ void gemv_fma_kernel(MatmulOperands<T> op, int splits) {
  constexpr int columns = gemv_fma_columns;
  extern __shared__ float sums[];
  const GemvWarp me(splits);
  const T* weight[columns];
  const T* x[Rows];
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    weight[c] = op.weight + min(me.first_column(columns) + c, op.out - 1) * op.weight_pitch;
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r) x[r] = op.x + op.x_row(min(std::int64_t{r}, op.rows - 1));

  float sum[Rows][columns] = {};
  for (std::int64_t k = (me.split * 32 + me.lane) * N; k < op.in; k += splits * 32 * N) {
    float w[columns][N];
#pragma unroll
    for (int c = 0; c < columns; ++c) load_floats(weight[c] + k, w[c]);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float v[N];
      load_floats(x[r] + k, v);
#pragma unroll
      for (int c = 0; c < columns; ++c) {
#pragma unroll
        for (int i = 0; i < N; ++i) sum[r][c] = fmaf(w[c][i], v[i], sum[r][c]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < Rows; ++r) {
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      for (int distance = 16; distance > 0; distance /= 2) {
        sum[r][c] += __shfl_xor_sync(~0u, sum[r][c], distance);
      }
      if (me.lane == 0) sums[(me.warp * Rows + r) * columns + c] = sum[r][c];
    }
  }
  add_splits<Rows, columns>(op, me, sums);
}

}  // namespace mamba::cuda
