// A block of SsdGradPlan::mma: a chunk of some heads of a group, by 16 warps, and what lies where.
// The block goes through its heads, and four warps at a time have one part of the work on each:
//   within   Z, L (C . B) and what spans each step; of them warp r has steps i from 16 r on
//   outputs  dC, a sum over heads; each has 32 steps i and 64 states
//   inputs   dB, the same with steps j
//   channels dx; each has 32 steps j and 32 channels
// Tiles of 32 rows read from shared memory half of what those of 16 would. Tiles of the next head
// arrive meanwhile.
#pragma once

#include "kernels/scan/ssd_grad/mma.cuh"

namespace mamba::cuda {

constexpr int mma_chunk_threads = 512;

class MmaPlace {
  // What is asked for once a head, kept where it takes no registers.
  struct Place {
    const bf16 *x, *dy, *S, *G;  // of the block's first head
    const float* steps;
    bf16* dx;
    std::int64_t row, c, start;  // of the chunk
    int count;                   // its steps
    int group, head_block, first_head, heads;
    bool parted;
  };

 public:
  static constexpr int warps = mma_chunk_threads / 32;
  static constexpr int buffer_bytes = 4 * (channel_tile + state_tile) + 4 * SsdSteps::floats;
  static constexpr int CB_pitch = ssd_chunk + 8;
  static constexpr int fixed_bytes = 4 * state_tile + 2 * channel_tile + 4 * ssd_chunk * CB_pitch +
                                     static_cast<int>(sizeof(Place));
  // What is known of each head until the end, 64 floats each: of the sums that span a step, what
  // four groups of rows have; what two halves of the states and of the channels make of the next
  // three; dy . x; and shares of E[last] <G, S>.
  enum Kept { spans = 0, of_state = 4, of_adjoint = 6, of_input = 8, skip = 10, through = 11 };
  static constexpr int kept_floats = through * ssd_chunk + 4;
  static constexpr int shared_bytes(int heads, int buffers) {
    return fixed_bytes + buffers * buffer_bytes + 4 * kept_floats * heads;
  }

  __device__ explicit MmaPlace(const SsdGradOperands& op) : op_(op) {}

  // By all threads: finds out where the block is, and begins to copy.
  __device__ void begin_block() const {
    const std::int64_t blocks = std::int64_t{op_.groups} * op_.head_blocks;
    const std::int64_t chunk = blockIdx.x / blocks, row = chunk / op_.chunks;
    const auto block = static_cast<int>(blockIdx.x - chunk * blocks);
    if (thread() == 0) {
      find_place(row, chunk - row * op_.chunks, block / op_.head_blocks, block % op_.head_blocks);
    }
    __syncthreads();
    fetch_states(op_.B, B());
    fetch_states(op_.C, C());
    fetch(0);
  }

 protected:
  // Where the warps of channels wait for those within.
  static constexpr int mixed_barrier = 1;

  static __device__ int warp() { return thread() / 32 % 4; }  // of its four
  static __device__ int thread() { return thread_id(); }
  static __device__ char* memory() {
    extern __shared__ __align__(16) char ssd_grad_memory[];
    return ssd_grad_memory;
  }
  static __device__ Place& place() {
    return *reinterpret_cast<Place*>(memory() + fixed_bytes - sizeof(Place));
  }
  static __device__ bf16* B() { return reinterpret_cast<bf16*>(memory()); }
  static __device__ bf16* C() { return B() + state_tile; }
  static __device__ bf16* mixed() { return C() + state_tile; }
  static __device__ float* CB() { return reinterpret_cast<float*>(mixed() + channel_tile); }
  __device__ char* buffer(int h) const {
    return memory() + fixed_bytes + (h & (op_.buffers - 1)) * buffer_bytes;
  }
  __device__ float* kept(int h, int what) const {
    return reinterpret_cast<float*>(memory() + fixed_bytes + op_.buffers * buffer_bytes) +
           h * kept_floats + what * ssd_chunk;
  }
  __device__ bf16* x() const { return reinterpret_cast<bf16*>(buffer(h_)); }
  __device__ bf16* dy() const { return x() + channel_tile; }
  __device__ bf16* S() const { return dy() + channel_tile; }
  __device__ bf16* G() const { return S() + state_tile; }
  __device__ SsdSteps steps() const { return {reinterpret_cast<float*>(G() + state_tile)}; }

  // Of tiles of 32 rows: the first one, and the row of half `half` of fragment `part` of this lane.
  __device__ int rows() const { return warp() % 2 * 32; }
  __device__ int row_of(int part, int half, Lane lane) const {
    return rows() + 16 * part + 8 * half + lane.g();
  }
  __device__ int states_from() const { return warp() / 2 * 64; }
  __device__ int channels_from() const { return warp() / 2 * 32; }

  __device__ void find_place(std::int64_t row, std::int64_t c, int group, int head_block) const {
    const SsdHeads heads(op_, group, head_block);
    const SsdChunk chunk = op_.chunk(c);
    const std::int64_t column = std::int64_t{heads.first} * op_.head_dim, b = op_.first_row + row;
    Place& all = place();
    all.x = op_.x.at<bf16>(b, chunk.start) + column;
    all.dy = op_.dy.at<bf16>(b, chunk.start) + column;
    all.dx = op_.dx.out<bf16>(b, chunk.start) + column;
    all.S = SsdMma::state(op_, row, c, heads.first);
    all.G = SsdMma::adjoint(op_, row, c, heads.first);
    all.steps = op_.steps_of(row, c, heads.first).at;
    all.row = row;
    all.c = c;
    all.start = chunk.start;
    all.count = chunk.steps;
    all.group = group;
    all.head_block = head_block;
    all.first_head = heads.first;
    all.heads = heads.count;
    all.parted = op_.parted[row * op_.chunks + c] != 0;
  }
  __device__ void fetch_states(const ScanTrack& track, bf16* to) const {
    fetch_tile<mma_chunk_threads, mma_states>(
        to,
        track.at<bf16>(op_.first_row + place().row, place().start) +
            std::int64_t{place().group} * op_.d_state,
        track.step_pitch, place().count, op_.d_state);
  }
  __device__ void fetch(int h) const {
    const Place& from = place();
    const int channel = h * op_.head_dim, state = channel * op_.d_state;
    bf16* to = reinterpret_cast<bf16*>(buffer(h));
    fetch_tile<mma_chunk_threads, mma_channels>(to, from.x + channel, op_.x.step_pitch, from.count,
                                                op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_channels>(to += channel_tile, from.dy + channel,
                                                op_.dy.step_pitch, from.count, op_.head_dim);
    fetch_tile<mma_chunk_threads, mma_states>(to += channel_tile, from.S + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    fetch_tile<mma_chunk_threads, mma_states>(to += state_tile, from.G + state, op_.d_state,
                                              op_.head_dim, op_.d_state);
    const int piece = 4 * thread();
    if (piece < SsdSteps::floats) {
      copy_16_bytes(reinterpret_cast<float*>(to + state_tile) + piece,
                    from.steps + h * SsdSteps::floats + piece, 16);
    }
    end_of_copies();
  }
  // The head's tiles are there, and all are done with the head before.
  __device__ void begin(int h) {
    h_ = h;
    if (op_.buffers == 1 && h > 0) {
      __syncthreads();
      fetch(h);
    }
    wait_for_all_copies();
    __syncthreads();
    if (op_.buffers > 1 && h + 1 < place().heads) fetch(h + 1);
  }

  // The sum of a value of each row over the four lanes that share it.
  __device__ void put_row_sums(int what, float (&sums)[2][2], Lane lane) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& sum = sums[i / 2][i % 2];
      sum += __shfl_xor_sync(all_lanes, sum, 1);
      sum += __shfl_xor_sync(all_lanes, sum, 2);
      if (lane.q() == 0) kept(h_, what + warp() / 2)[row_of(i / 2, i % 2, lane)] = sum;
    }
  }

  // ---- what a reset parts may be infinite or NaN ----

  // Whether 64 rows of a tile have an infinity or NaN in `width` columns from `first` on, for each
  // warp that asks.
  static __device__ bool has_wild(const bf16* tile, int pitch, int first, int width) {
    bool found = false;
    for (int i = thread() % 32; i < ssd_chunk * width / 2; i += 32) {
      float values[2];
      const int row = i / (width / 2), column = first + i % (width / 2) * 2;
      load_pair(tile + row * pitch + column, values[0], values[1]);
      found = found || !isfinite(values[0]) || !isfinite(values[1]);
    }
    return __any_sync(all_lanes, found);
  }
  // sums += a(row, k) b[k][column], where a is not zero; k up to the row, or from it on. Slow, and
  // only for chunks that have both a reset and something wild.
  template <bool kUpTo, int kTiles, class A>
  __device__ void add_selected(float (&sums)[2][kTiles][4], Lane lane, const A& a, const bf16* b,
                               int pitch, int first) const {
#pragma unroll 1
    for (int k = 0; k < ssd_chunk; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row_of(i / 2, i % 2, lane);
        if (kUpTo ? k > row : k < row) continue;
        const float factor = to_float(a(row, k));
        if (factor == 0) continue;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          float value[2];
          load_pair(b + k * pitch + first + 8 * t + 2 * lane.q(), value[0], value[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = sums[i / 2][t][2 * (i % 2) + e];
            sum = fmaf(factor, value[e], sum);
          }
        }
      }
    }
  }

  const SsdGradOperands& op_;

  int h_ = 0;
};

}  // namespace mamba::cuda
