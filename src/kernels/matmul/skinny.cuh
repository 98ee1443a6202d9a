// y = x weight^T + bias for 9 to 64 rows of x, 16-bit, on the tensor cores, between short kernels:
// what counts is how much a multiprocessor has to fetch once it is its turn, and how soon the first
// of it is there. A block multiplies a tile of weight rows and of rows of x over a part of the
// depth; the blocks of a cluster share the depth of one tile, so that x is not read again for every
// few weight rows, and give each other their sums through shared memory. Weights are on their way
// before the kernel's turn (see detail::ConstantWeights).
//
// Every order of summation is fixed by the shape and the launch, so the bits are too.
#pragma once

#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/matmul/matmul_operands.cuh"

namespace mamba::cuda {

// A block's tile. Wider ones (48 to 80 weight rows, 32 or 64 rows of x) were hardly ever faster on
// an H200.
constexpr int skinny_columns = 32;  // weight rows
constexpr int skinny_rows = 16;     // rows of x

constexpr int skinny_depth = 128;  // elements of a stage
constexpr int skinny_ahead = 8;    // stages on their way
constexpr int skinny_pieces = 4;   // of a stage's depth: a warp has all of the tile at one of them
constexpr int skinny_threads = skinny_pieces * 32;
constexpr int skinny_most_splits = 8;  // blocks of a cluster, wherever it runs

constexpr int skinny_line = skinny_depth / 8;  // pieces of 16 bytes in a row of a stage
constexpr int skinny_stage = (skinny_columns + skinny_rows) * skinny_line;
// Floats between rows of sums, so that no two lanes that write together meet in a bank.
constexpr int skinny_pitch = skinny_columns + 4;
constexpr int skinny_sums = skinny_rows * skinny_pitch;  // floats

// A block's shared memory in pieces of 16 bytes: what the cluster's blocks write to it, then the
// ring, and in the ring's place, once all of it is read, the warps' sums. Two blocks fit in a
// multiprocessor of an H200, one in 99 KB.
constexpr int skinny_exchange = skinny_sums / 4;
static_assert(skinny_sums % 4 == 0 && skinny_pieces * skinny_sums / 4 <= skinny_stage);

// A launch's cut of the depth.
struct SkinnyCut {
  int splits;  // blocks of a cluster
  int depth;   // of each
  int stages;  // of each
  bool constant;

  __device__ __forceinline__ int rank() const { return static_cast<int>(blockIdx.x) % splits; }
  __device__ __forceinline__ std::int64_t first_column() const {
    return std::int64_t{blockIdx.x / static_cast<unsigned>(splits)} * skinny_columns;
  }
};

// The tensor cores multiply in 16 bits, and a slot of the ring has no place for more.
template <class Load>
constexpr bool skinny_takes = sizeof(typename Load::T) == 2 && sizeof(typename Load::Stored) <= 2;

// A block's operands through a ring in shared memory: [slot][weight rows, then rows of x][16
// bytes]. Beyond the last weight row, the last row of x and the end of the depth: zeros.
template <class Load>
struct SkinnyRing {
  using T = typename Load::T;
  using Stored = typename Load::Stored;
  static constexpr int pass = skinny_threads / skinny_line;  // rows that the block requests at once
  static_assert(skinny_columns % pass == 0 && skinny_rows % pass == 0);

  uint4* memory;
  int stages;
  int row;         // of this thread's requests, in a pass
  int place;       // in a row, in units of 16 bytes
  int depth, end;  // where this thread's next weights lie and where the block's depth ends
  int columns;     // weight rows from this thread's first one on
  const Stored* weight;
  std::int64_t weight_pitch;
  const T* x[skinny_rows / pass];

  __device__ __forceinline__ SkinnyRing(const MatmulOperands<Load>& op, const SkinnyCut& cut,
                                        uint4* memory_)
      : memory(memory_), stages(cut.stages) {
    row = static_cast<int>(threadIdx.x) / skinny_line;
    place = static_cast<int>(threadIdx.x) % skinny_line;
    const int begin = cut.rank() * cut.depth;
    end = min(begin + cut.depth, static_cast<int>(op.in));
    depth = begin + place * 8;
    const std::int64_t column = cut.first_column() + row;
    columns =
        static_cast<int>(max(min(op.out - column, std::int64_t{skinny_columns}), std::int64_t{0}));
    weight = op.weight.data + (columns > 0 ? column * op.weight_pitch : 0);
    weight_pitch = op.weight_pitch;
#pragma unroll
    for (int i = 0; i < skinny_rows / pass; ++i) {
      const std::int64_t r = std::int64_t{blockIdx.y} * skinny_rows + row + i * pass;
      x[i] = r < op.rows ? op.x + op.x_rows.offset(r) : nullptr;
    }
  }

  // Where a row's 16 bytes lie: eight lanes that read four neighbours of two rows each meet every
  // bank once.
  __device__ __forceinline__ static int at(int stage, int row_, int place_) {
    return (stage % skinny_ahead) * skinny_stage + row_ * skinny_line + (place_ ^ (row_ % 2 * 4));
  }

  // The weights that the ring has no room for yet, into L2: the first thread of a row, in one of
  // the tiles of rows of x.
  __device__ __forceinline__ void prefetch() const {
    const int from = depth + skinny_ahead * skinny_depth;
    if (place != 0 || blockIdx.y != 0 || from >= end) return;
    const auto bytes = static_cast<unsigned>(end - from) * static_cast<unsigned>(sizeof(Stored));
#pragma unroll
    for (int i = 0; i < skinny_columns / pass; ++i) {
      if (i * pass < columns) prefetch_to_l2(weight + i * pass * weight_pitch + from, bytes);
    }
  }
  __device__ __forceinline__ void request_weights(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * skinny_depth;
#pragma unroll
    for (int i = 0; i < skinny_columns / pass; ++i) {
      const bool there = i * pass < columns && from < end;
      copy_eight<Load>(memory + at(stage, row + i * pass, place),
                       there ? weight + i * pass * weight_pitch + from : weight,
                       there ? sizeof(typename Load::Eight) : 0);
    }
  }
  __device__ __forceinline__ void request_x(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * skinny_depth;
#pragma unroll
    for (int i = 0; i < skinny_rows / pass; ++i) {
      const bool there = x[i] != nullptr && from < end;
      copy_16_bytes(memory + at(stage, skinny_columns + row + i * pass, place),
                    there ? x[i] + from : reinterpret_cast<const T*>(weight), there ? 16 : 0);
    }
  }
};

// The sums of one warp: [16 weight rows][8 rows of x].
//
// In a fragment, lane 4 g + q holds row g, of x or of the weights, at depths of q's choice; a sum
// does not mind which, as long as both factors choose alike. So each lane takes 8 elements in a row
// of the 32 that the four lanes of a row read together: its first four are one product of depth 16,
// its last four another.
template <class Load>
struct SkinnySums {
  using T = typename Load::T;
  static constexpr int across = skinny_columns / 16;
  static constexpr int down = skinny_rows / 8;

  int piece = static_cast<int>(threadIdx.x / 32);
  int group = static_cast<int>(threadIdx.x % 32) / 4;
  int quarter = static_cast<int>(threadIdx.x % 4);
  float sum[across][down][4] = {};

  __device__ __forceinline__ void add(const uint4* ring, int stage) {
    using Ring = SkinnyRing<Load>;
    const auto fragment = [&](int row) {
      const uint4* at = ring + Ring::at(stage, row + group, piece * 4 + quarter);
      return Load::fragment(Load::Eight::load(reinterpret_cast<const typename Load::Stored*>(at)));
    };
    const int place = piece * 4 + quarter;
    uint4 x[down];
#pragma unroll
    for (int r = 0; r < down; ++r) {
      x[r] = ring[Ring::at(stage, skinny_columns + r * 8 + group, place)];
    }
#pragma unroll
    for (int c = 0; c < across; ++c) {
      const uint4 low = fragment(c * 16);
      const uint4 high = fragment(c * 16 + 8);
#pragma unroll
      for (int r = 0; r < down; ++r) {
        mma<T>(sum[c][r], low.x, high.x, low.y, high.y, x[r].x, x[r].y);
      }
#pragma unroll
      for (int r = 0; r < down; ++r) {
        mma<T>(sum[c][r], low.z, high.z, low.w, high.w, x[r].z, x[r].w);
      }
    }
  }

  // sums: [piece][row of x][pitch].
  __device__ __forceinline__ void store(float* sums) const {
#pragma unroll
    for (int c = 0; c < across; ++c) {
#pragma unroll
      for (int r = 0; r < down; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = piece * skinny_rows + r * 8 + quarter * 2 + i % 2;
          sums[row * skinny_pitch + c * 16 + i / 2 * 8 + group] = sum[c][r][i];
        }
      }
    }
  }
};

// The pieces' sums, added up, to the block of the cluster that will add up the blocks': each has as
// many rows of x. There: [block][its rows][pitch].
__device__ __forceinline__ void give_sums(const float* sums, float* exchange,
                                          const SkinnyCut& cut) {
  constexpr int quads = skinny_columns / 4;
  static_assert(skinny_rows * quads == skinny_threads);  // each thread has four sums
  const int row = static_cast<int>(threadIdx.x) / quads;
  const int column = static_cast<int>(threadIdx.x) % quads * 4;
  const float* from = sums + row * skinny_pitch + column;
  float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll
  for (int piece = 1; piece < skinny_pieces; ++piece) {
    const float4 next = *reinterpret_cast<const float4*>(from + piece * skinny_sums);
    sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
  }
  const int rows = skinny_rows / cut.splits;
  float* to = exchange + (cut.rank() * rows + row % rows) * skinny_pitch + column;
  store_in_block(row / rows, to, sum);
}

// y from `parts` sums of each of the block's share of the tile's rows of x: [part][row][pitch].
template <class Load>
__device__ __forceinline__ void finish_rows(const MatmulOperands<Load>& op, const SkinnyCut& cut,
                                            const float* sums, int parts) {
  const int rows = skinny_rows / cut.splits;
  const std::int64_t first_row = std::int64_t{blockIdx.y} * skinny_rows + cut.rank() * rows;
  for (int i = static_cast<int>(threadIdx.x); i < rows * skinny_columns; i += skinny_threads) {
    const std::int64_t row = first_row + i / skinny_columns;
    const std::int64_t column = cut.first_column() + i % skinny_columns;
    if (row >= op.rows || column >= op.out) continue;
    const float* from = sums + i / skinny_columns * skinny_pitch + i % skinny_columns;
    float sum = from[0];
    for (int part = 1; part < parts; ++part) sum += from[part * rows * skinny_pitch];
    op.finish(row, column, sum);
  }
}

// Grid: [tiles of weight rows, each with its splits side by side][tiles of rows of x].
template <class Load>
__global__ void __launch_bounds__(skinny_threads)
    skinny_kernel(const __grid_constant__ MatmulOperands<Load> op, const SkinnyCut cut) {
  extern __shared__ uint4 memory[];
  auto* exchange = reinterpret_cast<float*>(memory);
  uint4* slots = memory + skinny_exchange;
  auto* sums = reinterpret_cast<float*>(slots);
  const SkinnyRing<Load> ring(op, cut, slots);
  if (cut.splits > 1) arrive_at_cluster();
  let_next_begin();
  ring.prefetch();
  wait_for_weights(cut.constant);
#pragma unroll
  for (int stage = 0; stage < skinny_ahead; ++stage) ring.request_weights(stage);
  wait_for_previous();
#pragma unroll
  for (int stage = 0; stage < skinny_ahead; ++stage) {
    ring.request_x(stage);
    end_of_copies();
  }
  SkinnySums<Load> mine;
#pragma unroll 1
  for (int stage = 0; stage < cut.stages; ++stage) {
    // A slot is filled again once all warps have read it, which is one stage later.
    if (stage == 0) {
      wait_for_copies<skinny_ahead - 1>();
    } else {
      wait_for_copies<skinny_ahead - 2>();
    }
    __syncthreads();
    if (stage > 0) {
      ring.request_weights(stage - 1 + skinny_ahead);
      ring.request_x(stage - 1 + skinny_ahead);
      end_of_copies();
    }
    mine.add(slots, stage);
  }
  __syncthreads();
  mine.store(sums);
  __syncthreads();
  if (cut.splits == 1) return finish_rows(op, cut, sums, skinny_pieces);
  wait_for_cluster();  // for all blocks to have begun
  give_sums(sums, exchange, cut);
  arrive_at_cluster();
  wait_for_cluster();
  finish_rows(op, cut, exchange, cut.splits);
}

}  // namespace mamba::cuda
