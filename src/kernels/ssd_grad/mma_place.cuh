// A block of SsdGradPlan::mma: a chunk of some heads of a group, by 16 warps, and what lies where.
// Warp 4 c + r has rows of steps from 16 r on: as steps i, where outputs are, with 16 c of the
// steps j of inputs; and as steps j with 16 c of the channels. Of what is summed over heads the
// first eight warps have dC and the others dB, half of the states each. Tiles of the next head
// arrive meanwhile.
#pragma once

#include "kernels/ssd_grad/mma.cuh"

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
  static constexpr int buffer_bytes = 4 * (channel_tile + state_tile) + 4 * SsdGradSteps::floats;
  // What warps know of a head's steps, 64 floats each: of the sums that span a step, what four
  // groups of rows have, and the rows' sums over three groups of columns; what two halves of the
  // states and four groups of channels make of the next; and dy . x. It is written for one head
  // while that of the head before is added up.
  enum Part { spans = 0, rows_before = 4, from_state = 7, to_adjoint = 9, input = 13, parts = 17 };
  // Of each head until the end: its part of the sums that span a step, what columns before the
  // second, third and fourth group add to them, the next three, dy . x, and shares of E[last] <G,
  // S>.
  enum Kept { of_spans = 0, of_rows = 1, of_state = 4, of_adjoint = 5, of_input = 6, skip = 7 };
  static constexpr int kept_floats = 8 * ssd_chunk + warps, through = 8 * ssd_chunk;
  static constexpr int fixed_bytes = 4 * state_tile + 2 * channel_tile + 2 * 4 * parts * ssd_chunk +
                                     static_cast<int>(sizeof(Place));
  static constexpr int shared_bytes(int heads, int buffers) {
    return fixed_bytes + buffers * buffer_bytes + 4 * kept_floats * heads;
  }

 protected:
  __device__ MmaPlace(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int group,
                      int head_block)
      : op_(op), rows_(thread() / 32 % 4 * 16), column_(thread() / 128 * 16) {
    if (thread() == 0) find_place(row, c, group, head_block);
    __syncthreads();
  }

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
  static __device__ float* part(int h, int what) {
    return reinterpret_cast<float*>(mixed() + channel_tile) + (h % 2 * parts + what) * ssd_chunk;
  }
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
  __device__ SsdGradSteps steps() const { return {reinterpret_cast<float*>(G() + state_tile)}; }

  // Whether this warp's steps j are all behind its steps i.
  __device__ bool is_above() const { return column_ > rows_; }
  __device__ bool is_of_outputs() const { return column_ < 32; }
  __device__ int states_from() const { return column_ % 32 * 4; }
  // The row of half `half` of a fragment that this lane has.
  __device__ int row_of(int half, Lane lane) const { return rows_ + lane.g() + 8 * half; }

  __device__ void find_place(std::int64_t row, std::int64_t c, int group, int head_block) const {
    const SsdHeads heads(op_, group, head_block);
    const SsdGradChunk chunk = op_.chunk(c);
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
    if (piece < SsdGradSteps::floats) {
      copy_16_bytes(reinterpret_cast<float*>(to + state_tile) + piece,
                    from.steps + h * SsdGradSteps::floats + piece, 16);
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
  __device__ void put_row_sums(int what, float (&sums)[2], Lane lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 1);
      sums[half] += __shfl_xor_sync(all_lanes, sums[half], 2);
      if (lane.q() == 0) part(h_, what)[row_of(half, lane)] = sums[half];
    }
  }
  // ---- what a reset parts may be infinite or NaN ----

  // Whether this thread's part of a tile has an infinity or NaN.
  static __device__ bool has_wild(const bf16* tile, int pitch, int width) {
    bool found = false;
    const int row = thread() / 8;
    for (int column = thread() % 8 * 2; column < width; column += 16) {
      float first, second;
      load_pair(tile + row * pitch + column, first, second);
      found = found || !isfinite(first) || !isfinite(second);
    }
    return found;
  }
  // sums += a(row, k) b[k][column], where a is not zero. Slow, and only for chunks that have both
  // a reset and something wild.
  template <bool kOutputs, int kTiles, class A>
  __device__ void add_selected(float (&sums)[kTiles][4], Lane lane, const A& a, const bf16* b,
                               int pitch, int first) const {
    for (int k = 0; k < ssd_chunk; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(half, lane);
        if (kOutputs ? k > row : k < row) continue;
        const float factor = to_float(a(row, k));
        if (factor == 0) continue;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          float value[2];
          load_pair(b + k * pitch + first + 8 * t + 2 * lane.q(), value[0], value[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            sums[t][2 * half + e] = fmaf(factor, value[e], sums[t][2 * half + e]);
          }
        }
      }
    }
  }

  const SsdGradOperands& op_;
  const int rows_, column_;
  int h_ = 0;
};

}  // namespace mamba::cuda
