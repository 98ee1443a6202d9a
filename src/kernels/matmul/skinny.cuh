// y = x weight^T + bias for some tens of rows of x, 16-bit, on the tensor cores, between short
// kernels: what counts is how much a multiprocessor has to fetch once it is its turn, and how soon
// the first of it is there. A block multiplies a tile of weight rows and of rows of x over a part
// of the depth; the blocks of a cluster share the depth of one tile, so that x is not read again
// for every few weight rows, and give each other their sums through shared memory. Weights are on
// their way before the kernel's turn (see detail::ConstantWeights), as many as the ring holds:
// asking for the rest too, into L2, made a step of 2.8b with 16 rows 3.28 ms instead of 2.93.
//
// Every order of summation is fixed by the shape and the launch, so the bits are too.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/matmul/matmul_operands.cuh"

namespace mamba::cuda {

// A block's tile and how its warps share it: each has all of the columns and a part of the rows at
// one piece of a stage's depth.
template <int Columns, int Rows, int Pieces, int RowParts, int Ahead>
struct SkinnyTile {
  static constexpr int columns = Columns;  // weight rows
  static constexpr int rows = Rows;        // rows of x
  static constexpr int pieces = Pieces;
  static constexpr int ahead = Ahead;  // stages on their way

  static constexpr int threads = Pieces * RowParts * 32;
  static constexpr int depth = Pieces * 32;          // elements of a stage
  static constexpr int line = depth / 8;             // pieces of 16 bytes in a row of a stage
  static constexpr int pass = threads / line;        // rows that the block requests at once
  static constexpr int part_rows = rows / RowParts;  // of a warp
  static constexpr int stage = (columns + rows) * line;
  // Floats between rows of sums, so that no two lanes that write together meet in a bank.
  static constexpr int pitch = columns + 4;
  static constexpr int sums = rows * pitch;  // floats
  static_assert(columns % 16 == 0 && part_rows % 8 == 0 && columns % pass == 0 && rows % pass == 0);

  // A block's shared memory in pieces of 16 bytes: what the cluster's blocks write to it, then the
  // ring, and in the ring's place, once all of it is read, the warps' sums.
  static constexpr int exchange = sums / 4;
  static int shared(int stages) {
    return exchange + std::max(std::min(stages, ahead) * stage, pieces * sums / 4);
  }
};

constexpr int skinny_most_splits = 8;  // blocks of a cluster, wherever it runs

// A launch's cut of the depth.
struct SkinnyCut {
  int splits;  // blocks of a cluster
  int depth;   // of each
  int stages;  // of each
  bool constant;

  __device__ __forceinline__ int rank() const { return static_cast<int>(blockIdx.x) % splits; }
  __device__ __forceinline__ int tile() const {  // of weight rows
    return static_cast<int>(blockIdx.x / static_cast<unsigned>(splits));
  }
};

// The tensor cores multiply in 16 bits, and a slot of the ring has no place for more.
template <class Load>
constexpr bool skinny_takes = sizeof(typename Load::T) == 2 && sizeof(typename Load::Stored) <= 2;

// A block's operands through a ring in shared memory: [slot][weight rows, then rows of x][16
// bytes]. Beyond the last weight row, the last row of x and the end of the depth: zeros.
template <class Load, class Tile>
struct SkinnyRing {
  using T = typename Load::T;
  using Stored = typename Load::Stored;
  static constexpr int pass = Tile::pass;

  uint4* memory;
  int stages;
  int row;         // of this thread's requests, in a pass
  int place;       // in a row, in units of 16 bytes
  int depth, end;  // where this thread's next weights lie and where the block's depth ends
  int columns;     // weight rows from this thread's first one on
  const Stored* weight;
  std::int64_t weight_pitch;
  const T* x[Tile::rows / pass];

  __device__ __forceinline__ SkinnyRing(const MatmulOperands<Load>& op, const SkinnyCut& cut,
                                        uint4* memory_)
      : memory(memory_), stages(cut.stages) {
    row = static_cast<int>(threadIdx.x) / Tile::line;
    place = static_cast<int>(threadIdx.x) % Tile::line;
    const int begin = cut.rank() * cut.depth;
    end = min(begin + cut.depth, static_cast<int>(op.in));
    depth = begin + place * 8;
    const std::int64_t column = std::int64_t{cut.tile()} * Tile::columns + row;
    columns =
        static_cast<int>(max(min(op.out - column, std::int64_t{Tile::columns}), std::int64_t{0}));
    weight = op.weight.data + (columns > 0 ? column * op.weight_pitch : 0);
    weight_pitch = op.weight_pitch;
#pragma unroll
    for (int i = 0; i < Tile::rows / pass; ++i) {
      const std::int64_t r = std::int64_t{blockIdx.y} * Tile::rows + row + i * pass;
      x[i] = r < op.rows ? op.x + op.x_rows.offset(r) : nullptr;
    }
  }

  // Where a row's 16 bytes lie: eight lanes that read four neighbours of two rows each meet every
  // bank once.
  __device__ __forceinline__ static int at(int stage, int row_, int place_) {
    return (stage % Tile::ahead) * Tile::stage + row_ * Tile::line + (place_ ^ (row_ % 2 * 4));
  }

  __device__ __forceinline__ void request_weights(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * Tile::depth;
#pragma unroll
    for (int i = 0; i < Tile::columns / pass; ++i) {
      const bool there = i * pass < columns && from < end;
      copy_eight<Load>(memory + at(stage, row + i * pass, place),
                       there ? weight + i * pass * weight_pitch + from : weight,
                       there ? sizeof(typename Load::Eight) : 0);
    }
  }
  __device__ __forceinline__ void request_x(int stage) const {
    if (stage >= stages) return;
    const int from = depth + stage * Tile::depth;
#pragma unroll
    for (int i = 0; i < Tile::rows / pass; ++i) {
      const bool there = x[i] != nullptr && from < end;
      copy_16_bytes(memory + at(stage, Tile::columns + row + i * pass, place),
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
template <class Load, class Tile>
struct SkinnySums {
  using T = typename Load::T;
  static constexpr int across = Tile::columns / 16;
  static constexpr int down = Tile::part_rows / 8;

  int piece = static_cast<int>(threadIdx.x / 32) % Tile::pieces;
  int first_row = static_cast<int>(threadIdx.x / 32) / Tile::pieces * Tile::part_rows;
  int group = static_cast<int>(threadIdx.x % 32) / 4;
  int quarter = static_cast<int>(threadIdx.x % 4);
  float sum[across][down][4] = {};

  __device__ __forceinline__ void add(const uint4* ring, int stage) {
    using Ring = SkinnyRing<Load, Tile>;
    const auto fragment = [&](int row) {
      const uint4* at = ring + Ring::at(stage, row + group, piece * 4 + quarter);
      return Load::fragment(Load::Eight::load(reinterpret_cast<const typename Load::Stored*>(at)));
    };
    const int place = piece * 4 + quarter;
    uint4 x[down];
#pragma unroll
    for (int r = 0; r < down; ++r) {
      x[r] = ring[Ring::at(stage, Tile::columns + first_row + r * 8 + group, place)];
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
          const int row = piece * Tile::rows + first_row + r * 8 + quarter * 2 + i % 2;
          sums[row * Tile::pitch + c * 16 + i / 2 * 8 + group] = sum[c][r][i];
        }
      }
    }
  }
};

// The pieces' sums, added up, to the block of the cluster that will add up the blocks': each has as
// many rows of x. There: [block][its rows][pitch].
template <class Tile>
__device__ __forceinline__ void give_sums(const float* sums, float* exchange,
                                          const SkinnyCut& cut) {
  constexpr int quads = Tile::columns / 4;
  const int rows = Tile::rows / cut.splits;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * quads; i += Tile::threads) {
    const int row = i / quads, column = i % quads * 4;
    const float* from = sums + row * Tile::pitch + column;
    float4 sum = *reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int piece = 1; piece < Tile::pieces; ++piece) {
      const float4 next = *reinterpret_cast<const float4*>(from + piece * Tile::sums);
      sum = {sum.x + next.x, sum.y + next.y, sum.z + next.z, sum.w + next.w};
    }
    float* to = exchange + (cut.rank() * rows + row % rows) * Tile::pitch + column;
    store_in_block(row / rows, to, sum);
  }
}

// The places of y whose sums a thread ends, `End::together` neighbouring columns each: a block's
// are all columns of its share of the rows of the tile.
template <class Tile, class End>
struct SkinnyPlaces {
  static constexpr int vectors = Tile::columns / End::together;  // of a row
  static constexpr int most = (Tile::rows * vectors + Tile::threads - 1) / Tile::threads;
  static constexpr bool keeps = !std::is_empty_v<typename End::Early>;
  int rows;  // of the block
  std::int64_t first_row, first_column, all_rows, all_columns;

  template <class Operands>
  __device__ __forceinline__ SkinnyPlaces(const Operands& op, const SkinnyCut& cut)
      : rows(Tile::rows / cut.splits),
        first_row(std::int64_t{blockIdx.y} * Tile::rows + cut.rank() * rows),
        first_column(std::int64_t{cut.tile()} * Tile::columns),
        all_rows(op.rows),
        all_columns(op.out) {}

  // f(e, row in the block, column in the block, whether it is there) for the e-th place of each
  // thread, by all threads.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const auto place = [&](int e) {
      const int i = e * Tile::threads + static_cast<int>(threadIdx.x);
      const int row = i / vectors, column = i % vectors * End::together;
      f(e, row, column,
        row < rows && first_row + row < all_rows && first_column + column < all_columns);
    };
    if constexpr (keeps) {  // unrolled, so that what is kept for each place stays in registers
#pragma unroll
      for (int e = 0; e < most; ++e) place(e);
    } else {
#pragma unroll 1
      for (int e = 0; e * Tile::threads < rows * vectors; ++e) place(e);
    }
  }
};

// What becomes of the sums: y of the Matmul.
template <class Load>
struct SkinnyY {
  static constexpr int together = 1;
  static constexpr bool next_waits = false;
  struct Early {};
  const MatmulOperands<Load>& op;

  __device__ __forceinline__ void prepare() const {}
  __device__ __forceinline__ void finish(bool there, std::int64_t row, std::int64_t column,
                                         const float (&sum)[1], const Early&) const {
    if (there) op.finish(row, column, sum[0]);
  }
};

// `End` says what becomes of the sums, of so many columns `together`. Its prepare() runs once the
// kernel's turn has come; load() for each place before its sums are known, if it has an Early to
// keep; and finish() with them, which all threads call, also for places that are not there.
// next_waits: the next kernel begins only once this one's turn has come, so it may read what
// kernels before this one have written before its own.
//
// store(sums) puts the block's sums into its shared memory. It is all done in few instructions,
// since a kernel waits to fetch what it does once (in_proj of 130m, 64 rows, by the profiler: 21.0
// us with ends of one column each, unrolled, 14.6 us with eight columns).
template <class Tile, class End, class Operands, class Store>
__device__ __forceinline__ void end_sums(const Operands& op, const SkinnyCut& cut, const End& end,
                                         float* sums, float* exchange, const Store& store) {
  using Places = SkinnyPlaces<Tile, End>;
  const Places places(op, cut);
  typename End::Early early[Places::most] = {};
  __syncthreads();
  store(sums);
  if constexpr (Places::keeps) {
    places.each([&](int e, int row, int column, bool there) {
      if (there) early[e] = end.load(places.first_row + row, places.first_column + column);
    });
  }
  __syncthreads();
  const bool alone = cut.splits == 1;
  if (!alone) {
    wait_for_cluster();  // for all blocks to have begun
    give_sums<Tile>(sums, exchange, cut);
    arrive_at_cluster();
    wait_for_cluster();
    sums = exchange;
  }
  places.each([&](int e, int row, int column, bool there) {
    constexpr int V = End::together, F = V < 4 ? V : 4;
    float sum[V] = {};
    const auto add = [&](int part) {
      const float* from = sums + (part * places.rows + row) * Tile::pitch + column;
#pragma unroll
      for (int i = 0; i < V; i += F) {
        float more[F];
        load_floats<F>(from + i, more);
#pragma unroll
        for (int k = 0; k < F; ++k) sum[i + k] = part == 0 ? more[k] : sum[i + k] + more[k];
      }
    };
    // The pieces, whose number is known here, are read at once and not one after the other: 2.2 us
    // and 2.4 us for 16 rows of 48 x 1536.
    if (there && alone) {
#pragma unroll
      for (int part = 0; part < Tile::pieces; ++part) add(part);
    } else if (there) {
#pragma unroll 1
      for (int part = 0; part < cut.splits; ++part) add(part);
    }
    end.finish(there, places.first_row + row, places.first_column + column, sum,
               early[Places::keeps ? e : 0]);
  });
}

// Grid: [tiles of weight rows, each with its splits side by side][tiles of rows of x].
template <class Load, class Tile, class End>
__device__ __forceinline__ void skinny_product(const MatmulOperands<Load>& op, const SkinnyCut& cut,
                                               const End& end) {
  extern __shared__ uint4 memory[];
  auto* exchange = reinterpret_cast<float*>(memory);
  uint4* slots = memory + Tile::exchange;
  auto* sums = reinterpret_cast<float*>(slots);
  const SkinnyRing<Load, Tile> ring(op, cut, slots);
  if (cut.splits > 1) arrive_at_cluster();
  if constexpr (!End::next_waits) let_next_begin();
  wait_for_weights(cut.constant);
#pragma unroll
  for (int stage = 0; stage < Tile::ahead; ++stage) ring.request_weights(stage);
  wait_for_previous();
  if constexpr (End::next_waits) let_next_begin();
#pragma unroll
  for (int stage = 0; stage < Tile::ahead; ++stage) {
    ring.request_x(stage);
    end_of_copies();
  }
  end.prepare();
  SkinnySums<Load, Tile> mine;
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
    mine.add(slots, stage);
  }
  end_sums<Tile>(op, cut, end, sums, exchange, [&](float* to) { mine.store(to); });
}

// What a launch of a product comes to.
template <class Load, class Tile>
struct SkinnyLaunch {
  SkinnyCut cut;
  dim3 grid;
  std::size_t shared;  // bytes

  SkinnyLaunch(const MatmulOperands<Load>& op, int splits, bool constant) {
    const auto up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
    cut.splits = splits;
    cut.depth = static_cast<int>(up(up(op.in, splits), 32) * 32);
    cut.stages = static_cast<int>(up(cut.depth, Tile::depth));
    cut.constant = constant;
    grid = dim3(static_cast<unsigned>(up(op.out, Tile::columns) * splits),
                static_cast<unsigned>(up(op.rows, Tile::rows)));
    shared = static_cast<std::size_t>(Tile::shared(cut.stages)) * sizeof(uint4);
  }
};

}  // namespace mamba::cuda
