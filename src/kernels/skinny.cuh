// y = x weight^T + bias for a few tens of rows of x, 16-bit, on the tensor cores, between short
// kernels: what counts is how much a multiprocessor has to fetch once it is its turn, and how soon
// the first of it is there. A block multiplies a tile of weight rows and of rows of x over a part
// of the depth; the blocks of a cluster share the depth of one tile, so that x is not read again
// for every few weight rows, and give each other their sums through shared memory. Weights are on
// their way before the kernel's turn (see ConstantWeights).
//
// Every order of summation is fixed by the shape and the launch, so the bits are too.
#pragma once

#include "kernels/chained.cuh"
#include "kernels/cluster.cuh"
#include "kernels/matmul_operands.cuh"
#include "kernels/tensor_core.cuh"

namespace mamba::cuda {

constexpr int skinny_depth = 128;                      // elements of a stage
constexpr int skinny_pieces = 4;                       // of a stage, one for each of as many warps
constexpr std::int64_t skinny_most_ahead = 128 << 10;  // bytes of stages on their way
constexpr int skinny_most_splits = 8;                  // blocks of a cluster, wherever it runs

// A block's tile: Columns weight rows and Rows rows of x. A warp has all weight rows and up to 32
// rows of x at one piece of every stage's depth.
template <int Columns, int Rows>
struct SkinnyTile {
  static constexpr int groups = Rows > 32 ? Rows / 32 : 1;  // of rows of x
  static constexpr int group_rows = Rows / groups;
  static constexpr int threads = groups * skinny_pieces * 32;
  static constexpr int line = skinny_depth / 8;  // pieces of 16 bytes in a row of a stage
  static constexpr int stage = (Columns + Rows) * line;
  static constexpr std::int64_t stage_bytes = stage * std::int64_t{sizeof(uint4)};
  static constexpr int ahead = static_cast<int>(
      skinny_most_ahead / stage_bytes < 8 ? skinny_most_ahead / stage_bytes : 8);  // stages
  // Between rows of sums, so that no two lanes that write together meet in a bank.
  static constexpr int pitch = Columns + 4;

  static constexpr std::int64_t sums_bytes = std::int64_t{skinny_pieces} * Rows * pitch * 4;
  static constexpr std::int64_t exchange_bytes = std::int64_t{Rows} * pitch * 4;
};

// A launch's cut of the depth.
struct SkinnyCut {
  int splits;    // blocks of a cluster
  int depth;     // of each
  int stages;    // of each
  int exchange;  // floats of dynamic shared memory before those that the cluster writes
  bool constant;
};

// A block's operands through a ring in shared memory: [slot][weight rows, then rows of x][16
// bytes]. Beyond the last weight row, the last row of x and the end of the depth: zeros.
template <class T, int Columns, int Rows>
struct SkinnyRing {
  using Tile = SkinnyTile<Columns, Rows>;
  static constexpr int pass = Tile::threads / Tile::line;  // rows that the block requests at once
  static_assert(Columns % pass == 0 && Rows % pass == 0);

  uint4* memory;
  int stages;
  int row;         // of this thread's requests, in a pass
  int place;       // in a row, in units of 16 bytes
  int depth, end;  // where this thread's next weights lie and where the block's depth ends
  int columns;     // weight rows from this thread's first one on
  const T* weight;
  std::int64_t weight_pitch;
  const T* x[Rows / pass];

  __device__ __forceinline__ SkinnyRing(const MatmulOperands<T>& op, const SkinnyCut& cut,
                                        uint4* memory_)
      : memory(memory_), stages(cut.stages) {
    row = static_cast<int>(threadIdx.x) / Tile::line;
    place = static_cast<int>(threadIdx.x) % Tile::line;
    const int begin = static_cast<int>(blockIdx.x) % cut.splits * cut.depth;
    end = min(begin + cut.depth, static_cast<int>(op.in));
    depth = begin + place * 8;
    const std::int64_t column =
        std::int64_t{blockIdx.x / static_cast<unsigned>(cut.splits)} * Columns + row;
    columns = static_cast<int>(max(min(op.out - column, std::int64_t{Columns}), std::int64_t{0}));
    weight = op.weight + (columns > 0 ? column * op.weight_pitch : 0);
    weight_pitch = op.weight_pitch;
#pragma unroll
    for (int i = 0; i < Rows / pass; ++i) {
      const std::int64_t r = std::int64_t{blockIdx.y} * Rows + row + i * pass;
      x[i] = r < op.rows ? op.x + op.x_row(r) : nullptr;
    }
  }

  // Where a row's 16 bytes lie: eight lanes that read four neighbours of two rows each meet every
  // bank once.
  __device__ __forceinline__ static int at(int stage, int row_, int place_) {
    return (stage % Tile::ahead) * Tile::stage + row_ * Tile::line + (place_ ^ (row_ % 2 * 4));
  }

  // The weights that the ring has no room for yet, into L2: the first thread of a row, in one of
  // the tiles of rows of x.
  __device__ __forceinline__ void prefetch() const {
    const int from = depth + Tile::ahead * skinny_depth;
    if (place != 0 || blockIdx.y != 0 || from >= end) return;
    const auto bytes = static_cast<unsigned>(end - from) * static_cast<unsigned>(sizeof(T));
#pragma unroll
    for (int i = 0; i < Columns / pass; ++i) {
      if (i * pass < columns) prefetch_to_l2(weight + i * pass * weight_pitch + from, bytes);
    }
  }
  __device__ __forceinline__ void request_weights(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * skinny_depth;
#pragma unroll
    for (int i = 0; i < Columns / pass; ++i) {
      const bool there = i * pass < columns && from < end;
      copy_16_bytes(memory + at(stage, row + i * pass, place),
                    there ? weight + i * pass * weight_pitch + from : weight, there ? 16 : 0);
    }
  }
  __device__ __forceinline__ void request_x(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * skinny_depth;
#pragma unroll
    for (int i = 0; i < Rows / pass; ++i) {
      const bool there = x[i] != nullptr && from < end;
      copy_16_bytes(memory + at(stage, Columns + row + i * pass, place),
                    there ? x[i] + from : weight, there ? 16 : 0);
    }
  }
};

// The sums of one warp: [16 weight rows][8 rows of x].
//
// In a fragment, lane 4 g + q holds row g, of x or of the weights, at depths of q's choice; a sum
// does not mind which, as long as both factors choose alike. So each lane takes 8 elements in a row
// of the 32 that the four lanes of a row read together: its first four are one product of depth 16,
// its last four another.
template <class T, int Columns, int Rows>
struct SkinnySums {
  using Tile = SkinnyTile<Columns, Rows>;
  static constexpr int across = Columns / 16;
  static constexpr int down = Tile::group_rows / 8;

  int piece = static_cast<int>(threadIdx.x / 32) % skinny_pieces;
  int first_row = static_cast<int>(threadIdx.x / 32) / skinny_pieces * Tile::group_rows;
  int group = static_cast<int>(threadIdx.x % 32) / 4;
  int quarter = static_cast<int>(threadIdx.x % 4);
  float sum[across][down][4] = {};

  __device__ __forceinline__ void add(const uint4* ring, int stage) {
    using Ring = SkinnyRing<T, Columns, Rows>;
    const int place = piece * 4 + quarter;
    uint4 x[down];
#pragma unroll
    for (int r = 0; r < down; ++r) {
      x[r] = ring[Ring::at(stage, Columns + first_row + r * 8 + group, place)];
    }
#pragma unroll
    for (int c = 0; c < across; ++c) {
      const uint4 low = ring[Ring::at(stage, c * 16 + group, place)];
      const uint4 high = ring[Ring::at(stage, c * 16 + 8 + group, place)];
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
          const int row = piece * Rows + first_row + r * 8 + quarter * 2 + i % 2;
          sums[row * Tile::pitch + c * 16 + i / 2 * 8 + group] = sum[c][r][i];
        }
      }
    }
  }
};

// The pieces' sums, added up, to the block of the cluster that will add up the blocks': each has as
// many rows of x. There: [block][its rows][pitch].
template <int Columns, int Rows>
__device__ __forceinline__ void give_sums(const float* sums, float* exchange, int splits) {
  using Tile = SkinnyTile<Columns, Rows>;
  constexpr int quads = Columns / 4;
  const int rows = Rows / splits;
  const int mine = static_cast<int>(blockIdx.x) % splits;
  for (int i = static_cast<int>(threadIdx.x); i < Rows * quads; i += Tile::threads) {
    const int row = i / quads;
    const float* from = sums + row * Tile::pitch + i % quads * 4;
    float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int piece = 1; piece < skinny_pieces; ++piece) {
      const float4 next = *reinterpret_cast<const float4*>(from + piece * Rows * Tile::pitch);
      sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
    }
    float* to = exchange + (mine * rows + row % rows) * Tile::pitch + i % quads * 4;
    store_in_block(row / rows, to, sum);
  }
}

// y from `parts` sums of each of the `rows` rows from `first` of the tile on: [part][row][pitch].
template <int Columns, int Rows, class T>
__device__ __forceinline__ void finish_rows(const MatmulOperands<T>& op, const float* sums,
                                            int parts, int first, int rows, int splits) {
  using Tile = SkinnyTile<Columns, Rows>;
  const std::int64_t first_column =
      std::int64_t{blockIdx.x / static_cast<unsigned>(splits)} * Columns;
  for (int i = static_cast<int>(threadIdx.x); i < rows * Columns; i += Tile::threads) {
    const std::int64_t row = std::int64_t{blockIdx.y} * Rows + first + i / Columns;
    const std::int64_t column = first_column + i % Columns;
    if (row >= op.rows || column >= op.out) continue;
    const float* from = sums + i / Columns * Tile::pitch + i % Columns;
    float sum = from[0];
    for (int part = 1; part < parts; ++part) sum += from[part * rows * Tile::pitch];
    op.finish(row, column, sum);
  }
}

// Grid: [tiles of weight rows, each with its splits side by side][tiles of rows of x].
template <class T, int Columns, int Rows>
__global__ void __launch_bounds__(SkinnyTile<Columns, Rows>::threads)
    skinny_kernel(const __grid_constant__ MatmulOperands<T> op, const SkinnyCut cut) {
  using Tile = SkinnyTile<Columns, Rows>;
  extern __shared__ uint4 memory[];
  auto* sums = reinterpret_cast<float*>(memory);  // where the ring was
  float* exchange = sums + cut.exchange;
  const SkinnyRing<T, Columns, Rows> ring(op, cut, memory);
  if (cut.splits > 1) arrive_at_cluster();
  let_next_begin();
  ring.prefetch();
  wait_for_weights(cut.constant);
#pragma unroll
  for (int stage = 0; stage < Tile::ahead; ++stage) ring.request_weights(stage);
  wait_for_previous();
#pragma unroll
  for (int stage = 0; stage < Tile::ahead; ++stage) {
    ring.request_x(stage);
    end_of_copies();
  }
  SkinnySums<T, Columns, Rows> mine;
#pragma unroll 1
  for (int stage = 0; stage < cut.stages; ++stage) {
    // A slot is filled again once all warps have read it, which is one stage later.
    if (stage == 0) {
      wait_for_copies<Tile::ahead - 1>();
    } else {
      wait_for_copies<Tile::ahead - 2>();
    }
    __syncthreads();
    if (stage > 0) {
      ring.request_weights(stage - 1 + Tile::ahead);
      ring.request_x(stage - 1 + Tile::ahead);
      end_of_copies();
    }
    mine.add(memory, stage);
  }
  __syncthreads();
  mine.store(sums);
  __syncthreads();
  if (cut.splits == 1) {
    return finish_rows<Columns, Rows>(op, sums, skinny_pieces, 0, Rows, 1);
  }
  wait_for_cluster();  // for all blocks to have begun
  give_sums<Columns, Rows>(sums, exchange, cut.splits);
  arrive_at_cluster();
  wait_for_cluster();
  const int rows = Rows / cut.splits;
  const int first = static_cast<int>(blockIdx.x) % cut.splits * rows;
  finish_rows<Columns, Rows>(op, exchange, cut.splits, first, rows, cut.splits);
}

}  // namespace mamba::cuda
