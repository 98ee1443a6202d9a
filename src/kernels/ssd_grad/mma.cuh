// SsdGrad on tensor cores, for bf16, head_dim up to 64 and d_state up to 128: tiles in shared
// memory and how products read them, of bf16 with f32 sums. What is computed is rounded to bf16
// once where it becomes a factor.
#pragma once

#include "kernels/ssd_grad/steps.cuh"

namespace mamba::cuda {

// ---- tiles in shared memory ---------------------------------------------------------------------

constexpr int mma_channels = 64, mma_states = 128;  // of a tile, zeros where there are fewer
// Rows are odd numbers of 16 bytes apart, so that eight of them lie in different banks.
constexpr int channel_pitch = mma_channels + 8, state_pitch = mma_states + 8;
constexpr int channel_tile = ssd_chunk * channel_pitch, state_tile = ssd_chunk * state_pitch;

// Begins to copy `rows` rows of `columns` elements, a multiple of 8, and zeros for what is missing
// of 64 rows of kWidth.
template <int kThreads, int kWidth>
__device__ __forceinline__ void fetch_tile(bf16* to, const bf16* from, std::int64_t pitch, int rows,
                                           int columns) {
  constexpr int pieces = kWidth / 8;
  const int thread = thread_id();
#pragma unroll 1
  for (int n = 0; n < 64 * pieces / kThreads; ++n) {
    const int piece = thread + n * kThreads;
    const int row = piece / pieces, column = piece % pieces * 8;
    const bool there = row < rows && column < columns;
    copy_16_bytes(to + row * (kWidth + 8) + column, there ? from + row * pitch + column : from,
                  there ? 16 : 0);
  }
}

// ---- fragments ----------------------------------------------------------------------------------

// A lane 4 g + q: see mma(). Each part of a kernel asks anew, so that no part keeps in registers
// where in shared memory the others read.
struct Lane {
  int index = lane_id();

  __device__ int g() const { return index / 4; }
  __device__ int q() const { return index % 4; }
};

// Where element [row][column] of a tile is. In 32 bits from the tile on, so that what is constant
// in it becomes a part of the instruction and takes no register.
__device__ __forceinline__ unsigned element(const bf16* tile, int pitch, int row, int column) {
  return shared_address(tile) + static_cast<unsigned>(row * pitch + column) * 2;
}
__device__ __forceinline__ unsigned lane_offset(int pitch, int row, int column) {
  return static_cast<unsigned>(row * pitch + column) * 2;
}
// 16 rows x 16 depths from [row][depth].
__device__ __forceinline__ void load_rows(std::uint32_t (&to)[4], const bf16* tile, int pitch,
                                          int row, int depth, Lane lane) {
  load_matrices(to, element(tile, pitch, row, depth) +
                        lane_offset(pitch, lane.index % 16, lane.index / 16 * 8));
}
// The same from [depth][row].
__device__ __forceinline__ void load_rows_across(std::uint32_t (&to)[4], const bf16* tile,
                                                 int pitch, int row, int depth, Lane lane) {
  load_matrices_transposed(
      to, element(tile, pitch, depth, row) +
              lane_offset(pitch, lane.index / 16 * 8 + lane.index % 8, lane.index / 8 % 2 * 8));
}
// 16 columns, in two tiles of 8, x 16 depths from [column][depth].
__device__ __forceinline__ void load_columns(std::uint32_t (&to)[4], const bf16* tile, int pitch,
                                             int column, int depth, Lane lane) {
  load_matrices(
      to, element(tile, pitch, column, depth) +
              lane_offset(pitch, lane.index / 16 * 8 + lane.index % 8, lane.index / 8 % 2 * 8));
}
// The same from [depth][column].
__device__ __forceinline__ void load_columns_across(std::uint32_t (&to)[4], const bf16* tile,
                                                    int pitch, int column, int depth, Lane lane) {
  load_matrices_transposed(to, element(tile, pitch, depth, column) +
                                   lane_offset(pitch, lane.index % 16, lane.index / 16 * 8));
}
// Two tiles of 8 columns.
__device__ __forceinline__ void multiply_pair(float (&first)[4], float (&second)[4],
                                              const std::uint32_t (&a)[4],
                                              const std::uint32_t (&b)[4]) {
  mma<bf16>(first, a[0], a[1], a[2], a[3], b[0], b[1]);
  mma<bf16>(second, a[0], a[1], a[2], a[3], b[2], b[3]);
}

__device__ __forceinline__ void unpack_pair(std::uint32_t pair, float& first, float& second) {
  first = __uint_as_float(pair << 16);
  second = __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ std::uint32_t pack_pair(float first, float second) {
  return Packed<bf16, 2>::pack({first, second}).words;
}
__device__ __forceinline__ void load_pair(const bf16* from, float& first, float& second) {
  unpack_pair(*reinterpret_cast<const std::uint32_t*>(from), first, second);
}

// A row of four neighbouring tiles, 32 columns from `to` on: four lanes exchange what they have, so
// that each stores 16 bytes. By the whole warp.
__device__ __forceinline__ void store_row(bf16* to, const float (&tiles)[4][2], bool there,
                                          int columns, Lane lane) {
  std::uint32_t pairs[4];
#pragma unroll
  for (int t = 0; t < 4; ++t) pairs[t] = pack_pair(tiles[t][0], tiles[t][1]);
  // pairs[t] of lane q goes to place q of lane t.
  const bool odd = (lane.q() & 1) != 0, high = (lane.q() & 2) != 0;
#pragma unroll
  for (int t = 0; t < 4; t += 2) {
    const std::uint32_t got = __shfl_xor_sync(all_lanes, odd ? pairs[t] : pairs[t + 1], 1);
    pairs[t] = odd ? got : pairs[t];
    pairs[t + 1] = odd ? pairs[t + 1] : got;
  }
#pragma unroll
  for (int t = 0; t < 2; ++t) {
    const std::uint32_t got = __shfl_xor_sync(all_lanes, high ? pairs[t] : pairs[t + 2], 2);
    pairs[t] = high ? got : pairs[t];
    pairs[t + 2] = high ? pairs[t + 2] : got;
  }
  const int column = 8 * lane.q();
  if (there && column < columns) {
    *reinterpret_cast<uint4*>(to + column) = {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// The same of two tiles, 16 columns: each lane of a pair stores 8 bytes.
__device__ __forceinline__ void store_row(bf16* to, const float (&tiles)[2][2], bool there,
                                          int columns, Lane lane) {
  const std::uint32_t own = pack_pair(tiles[0][0], tiles[0][1]);
  const std::uint32_t other = pack_pair(tiles[1][0], tiles[1][1]);
  const bool odd = lane.q() % 2 != 0;
  const std::uint32_t got = __shfl_xor_sync(all_lanes, odd ? own : other, 1);
  const int column = odd ? 8 + 2 * (lane.q() - 1) : 2 * lane.q();
  if (there && column < columns) {
    *reinterpret_cast<uint2*>(to + column) = odd ? uint2{got, other} : uint2{own, got};
  }
}

// States before chunks and adjoints behind them in scratch: bf16, [rows, chunks, heads, head_dim,
// d_state].
struct SsdMma {
  static __device__ bf16* state(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                int head) {
    return static_cast<bf16*>(op.states) + op.at_head(row, c, head) * op.state_size();
  }
  static __device__ bf16* adjoint(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                  int head) {
    return static_cast<bf16*>(op.adjoints) + op.at_head(row, c, head) * op.state_size();
  }
};

}  // namespace mamba::cuda
