// y = x weight^T + bias for one row of x and many rows of weights, whose reading is the whole cost.
// One block a multiprocessor, from beginning to end: what precedes the product (copying x, or a
// norm) is then done once a multiprocessor, while the first weights come. A warp has a few
// neighbouring weight rows and reads them as one stream through a ring in shared memory, each lane
// its own 16 bytes. How deep the ring is counts: memory answers late when it is busy (2.8b, one
// row, ms a token: 2.41 with 64 KiB in a block's rings, 2.05 with 128).
#pragma once

#include <algorithm>

#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/matmul/gemv_kernels.cuh"

namespace mamba::cuda {

constexpr int gemv_rows_warps = 16;  // of a block, at most: the next kernel's blocks need room too
constexpr int gemv_rows_together = 2;  // rows read side by side: x is unpacked once for both
constexpr int gemv_rows_round = gemv_rows_together * 32;  // 16 bytes each, of a warp
constexpr std::int64_t gemv_rows_rings = 128 << 10;       // bytes, of a block, at most
constexpr std::int64_t gemv_rows_most_in = 24 << 10;      // bytes of x
constexpr std::int64_t gemv_rows_besides = 40 << 10;      // bytes of x and of a norm's sums

// What a block needs of dynamic shared memory: [ring of each warp: `Ahead` rounds on their way][x,
// with zeros to whole rounds].
template <class Load, int Ahead>
struct RowsMemory {
  using T = typename Load::T;
  static constexpr int N = Load::N;  // elements of a lane in a round
  static constexpr int round = 32 * N;

  static __host__ __device__ std::int64_t padded(std::int64_t in) {
    return (in > 0 ? (in + round - 1) / round : 1) * round;
  }
  static std::size_t bytes(std::int64_t in, int warps) {
    return static_cast<std::size_t>(warps) * Ahead * gemv_rows_round * sizeof(uint4) +
           static_cast<std::size_t>(padded(in)) * sizeof(T);
  }
  static __device__ uint4* ring() {
    extern __shared__ uint4 memory[];
    return memory;
  }
  static __device__ T* x() {
    return reinterpret_cast<T*>(ring() + blockDim.x / 32 * Ahead * gemv_rows_round);
  }
  static __device__ void pad(int in) {
    const auto end = static_cast<int>(padded(in));
    for (int i = in + static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x)) {
      x()[i] = from_float<T>(0);
    }
  }
};

// How the weight rows are shared out: evenly over the multiprocessors, then over warps.
struct RowsCut {
  int rows;   // of a warp; lane i keeps the sum of row i
  int warps;  // of a block
  int ahead;  // rounds of a ring
  unsigned blocks;
  // The first rounds are read before the kernel's turn (see detail::ConstantWeights). To bring more
  // into L2 does not help, neither so early (1.4b: 1.27 ms a token, 1.31 with 16 MB, 1.42 with 32
  // MB) nor while x_proj and the scan leave the memory idle (1.31, and 1.50 with all of out_proj):
  // what those read then comes later.
  bool constant;

  template <class Load>
  RowsCut(const MatmulOperands<Load>& op, bool constant_, Device device, const char* where)
      : constant(constant_) {
    const std::int64_t share = divide_up(op.out, multiprocessors(device, where));
    const std::int64_t sides = divide_up(share, gemv_rows_warps * gemv_rows_together);
    rows = static_cast<int>(std::min<std::int64_t>(sides * gemv_rows_together, 32));
    warps = static_cast<int>(std::min<std::int64_t>(divide_up(share, rows), gemv_rows_warps));
    blocks = static_cast<unsigned>(divide_up(op.out, std::int64_t{warps} * rows));
    const std::int64_t rounds = rows / gemv_rows_together * divide_up(op.in, 32 * Load::N);
    const std::int64_t bytes =
        std::min(gemv_rows_rings, shared_memory(device, where) - gemv_rows_besides);
    const std::int64_t most = bytes / (warps * gemv_rows_round * std::int64_t{sizeof(uint4)});
    // 8 even for fewer rounds: room that a block takes is not there for kernels further down, whose
    // early reads are in the way (370m: 0.58 ms a token with 4, 0.55 with 8).
    ahead = most < 8 ? 4 : 8;
    for (const int deeper : {12, 16}) {
      if (ahead < rounds && deeper <= most) ahead = deeper;
    }
  }
  int threads() const { return warps * 32; }
};

// f(std::integral_constant<int, cut.ahead>{}).
template <class F>
void visit_ahead(const RowsCut& cut, F f) {
  switch (cut.ahead) {
    case 4:
      return f(std::integral_constant<int, 4>());
    case 8:
      return f(std::integral_constant<int, 8>());
    case 12:
      return f(std::integral_constant<int, 12>());
    default:
      return f(std::integral_constant<int, 16>());
  }
}

// The stream of one warp.
template <class Load, int Ahead>
struct WeightRows {
  using T = typename Load::T;
  using Stored = typename Load::Stored;
  using Memory = RowsMemory<Load, Ahead>;
  static constexpr int N = Memory::N;
  static constexpr int round = Memory::round;
  static constexpr int together = gemv_rows_together;

  int lane, in, count;  // count: rows, 0 beyond the last
  std::int64_t first, pitch;
  uint4* ring;         // of this lane: [Ahead][together], 32 apart
  const Stored* next;  // what this lane requests next,
  int next_at = 0;     // where in its row the round begins,
  int next_row = 0;

  __device__ __forceinline__ WeightRows(const MatmulOperands<Load>& op, int rows)
      : lane(static_cast<int>(threadIdx.x % 32)),
        in(static_cast<int>(op.in)),
        first((std::int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32) * rows),
        pitch(op.weight_pitch),
        ring(Memory::ring() + threadIdx.x / 32 * Ahead * gemv_rows_round + lane),
        next(op.weight.data + first * pitch + lane * N) {
    count = static_cast<int>(max(min(op.out - first, std::int64_t{rows}), std::int64_t{0}));
  }

  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int slot = 0; slot < Ahead; ++slot) request(slot);
  }
  // A group of copies, even if there is nothing left. Beyond a row's end and the last row: zeros.
  __device__ __forceinline__ void request(int slot) {
    if (next_row < count) {
#pragma unroll
      for (int r = 0; r < together; ++r) {
        const bool there = next_row + r < count && next_at + lane * N < in;
        copy_16_bytes(ring + (slot * together + r) * 32, there ? next + r * pitch : next,
                      there ? 16 : 0);
      }
      next += round;
      next_at += round;
      if (next_at >= in) {
        next += together * pitch - next_at;
        next_at = 0;
        next_row += together;
      }
    }
    end_of_copies();
  }

  // The product of row i with x, in lane i. x: RowsMemory::x(), padded.
  __device__ __forceinline__ float multiply(const T* x) {
    float mine = 0;
    float sum[together] = {};
    int slot = 0, at = 0, row = 0;
#pragma unroll 1
    while (row < count) {
      wait_for_copies<Ahead - 1>();
      float v[N], w[N];
      Factors<T, N>::load(x + at + lane * N).unpack(v);
#pragma unroll
      for (int r = 0; r < together; ++r) {
        Load::unpack(Packed<Stored, N>{ring[(slot * together + r) * 32]}, w);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[r] = fmaf(w[i], v[i], sum[r]);
      }
      request(slot);
      slot = (slot + 1) % Ahead;
      at += round;
      if (at < in) continue;
#pragma unroll
      for (int r = 0; r < together; ++r) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
          sum[r] += __shfl_xor_sync(all_lanes, sum[r], distance);
        }
        if (lane == row + r) mine = sum[r];
        sum[r] = 0;
      }
      at = 0;
      row += together;
    }
    return mine;
  }
};

template <class Load, int Ahead>
__global__ void __launch_bounds__(gemv_rows_warps * 32, 2)
    gemv_rows_kernel(const __grid_constant__ MatmulOperands<Load> op, const RowsCut cut) {
  using T = typename Load::T;
  using Memory = RowsMemory<Load, Ahead>;
  constexpr int V = 16 / static_cast<int>(sizeof(T));
  WeightRows<Load, Ahead> weights(op, cut.rows);
  T* x = Memory::x();
  let_next_begin();
  Memory::pad(weights.in);
  wait_for_weights(cut.constant);
  weights.begin();
  wait_for_previous();
  for (int i = static_cast<int>(threadIdx.x) * V; i < weights.in;
       i += static_cast<int>(blockDim.x) * V) {
    store_vec(x + i, load_vec<V>(op.x + i));
  }
  __syncthreads();
  const float sum = weights.multiply(x);
  if (weights.lane < weights.count) op.finish(0, weights.first + weights.lane, sum);
}

// Whether gemv() takes this kernel. With fewer weight rows there are too few warps.
inline bool streams_rows(const Matmul& op) {
  return !op.transpose_weight && detail::ChannelRows(op.x).count() == 1 &&
         op.weight.dim(0) >= 2048 &&
         op.weight.dim(1) * size_of(op.x.dtype()) <= gemv_rows_most_in && rows_are_aligned(op.x) &&
         rows_are_aligned(op.weight);
}

}  // namespace mamba::cuda
