// One block of the chunked plan of Ssd: which channels it has, where things lie in its shared
// memory, and what moves between that, memory and registers. The arithmetic is in ssd_chunks.cuh.
#pragma once

#include "kernels/ssd/ssd_chunk_steps.cuh"
#include "kernels/ssd/ssd_fragments.cuh"
#include "kernels/ssd/ssd_segments.cuh"

namespace mamba::cuda {

constexpr int ssd_slice = 16;      // channels of a warp
constexpr int ssd_most_warps = 8;  // of a block

// How the work is cut into blocks.
struct SsdChunkCut {
  int heads;           // of a block
  int slices;          // warps of each
  int parts;           // blocks that share a head, where it is one's only head
  int blocks;          // of a group
  int segments;        // runs of chunks that are walked at the same time
  int segment_chunks;  // of each, but the last may have fewer
  int kept;            // chunks between two states that are kept; 0: none are

  int warps() const { return heads * slices; }
};

// What a block works on, in its shared memory.
struct SsdPlace {
  int b, segment, group, head0, heads;  // heads: those from head0 on that exist
  int chunk, end;                       // the first; one past the last
};

// Where things lie in a block's shared memory. Rows of matrices are 8 elements longer than they
// need to be, so that eight rows of 16 bytes lie in different banks. Summary: without what y needs.
template <int N, bool Summary>
struct SsdLayout {
  static constexpr int states_bytes = ssd_chunk * (N + 8) * 2;  // of B or C
  static constexpr int mix_pitch = ssd_chunk + 8;
  static constexpr int mix_bytes = ssd_chunk * mix_pitch * 2;
  static constexpr int x_at = (Summary ? 2 : 4) * states_bytes;
  int x_pitch, mix_at, steps_at, poison_at, place_at, bytes;

  explicit SsdLayout(const SsdChunkCut& cut) {
    const int channels = cut.warps() * ssd_slice;
    x_pitch = channels + 8;
    mix_at = x_at + ssd_chunk * x_pitch * 2;
    steps_at = mix_at + (Summary ? 0 : cut.heads * mix_bytes);
    poison_at = steps_at + 2 * cut.heads * static_cast<int>(sizeof(SsdSteps));
    place_at = poison_at + channels * 8;
    bytes = place_at + static_cast<int>(sizeof(SsdPlace));
  }
};

// Registers are what this kernel is short of: what can be computed again is not kept, and the lane
// is read anew (see lane_id()) so that nothing that depends on it is kept either.
template <class T, int N, bool Summary>
struct SsdBlock {
  using Layout = SsdLayout<N, Summary>;
  static constexpr int pitch = N + 8;

  const SsdOperands& op;
  const SsdChunkCut& cut;
  const Layout& layout;
  char* memory;
  int warp, head, p;     // head: of the warp, from the block's first on; p: its first channel
  int chunk;             // the one at hand
  int stage = 0;         // which of two buffers the chunk is in
  bool works, prepares;  // whether the warp has channels; the first of its head
  float S[N / 8][4];     // of channels g and g + 8, states 8 k + 2 q and + 1

  __device__ SsdBlock(const SsdOperands& operands, const SsdChunkCut& chunk_cut,
                      const Layout& places, char* shared)
      : op(operands), cut(chunk_cut), layout(places), memory(shared) {
    warp = static_cast<int>(threadIdx.x) / 32;
    auto part = static_cast<int>(blockIdx.x) / cut.parts;
    const int first = part % cut.blocks * cut.heads;
    part /= cut.blocks;
    const int group = part % op.groups();
    part /= op.groups();
    if (threadIdx.x == 0) {
      const int segment = part % cut.segments, from = segment * cut.segment_chunks;
      const auto chunks = static_cast<int>((op.time + ssd_chunk - 1) / ssd_chunk);
      place() = {part / cut.segments,
                 segment,
                 group,
                 group * op.group_heads + first,
                 min(cut.heads, op.group_heads - first),
                 from,
                 min(from + cut.segment_chunks, chunks)};
    }
    __syncthreads();
    head = warp / cut.slices;
    p = first_p() + warp % cut.slices * ssd_slice;
    works = head < place().heads && p < op.head_dim;
    prepares = works && warp % cut.slices == 0;
    chunk = place().chunk;
  }
  __device__ SsdPlace& place() const {
    return *reinterpret_cast<SsdPlace*>(memory + layout.place_at);
  }
  __device__ int first_p() const {
    return static_cast<int>(blockIdx.x) % cut.parts * cut.slices * ssd_slice;
  }
  // Of each head, in this block.
  __device__ int channels() const { return min(cut.slices * ssd_slice, op.head_dim - first_p()); }
  __device__ int global_head() const { return place().head0 + head; }
  __device__ std::int64_t first_step(int of) const { return std::int64_t{of} * ssd_chunk; }
  __device__ int steps_there(int of) const {
    return static_cast<int>(min(op.time - first_step(of), std::int64_t{ssd_chunk}));
  }

  __device__ T* B(int s) const { return reinterpret_cast<T*>(memory + s * Layout::states_bytes); }
  __device__ T* C(int s) const { return B(2 + s); }
  __device__ T* x() const {  // the warp's columns
    return reinterpret_cast<T*>(memory + Layout::x_at) + warp * ssd_slice;
  }
  __device__ T* mix(int h) const {
    return reinterpret_cast<T*>(memory + layout.mix_at + h * Layout::mix_bytes);
  }
  __device__ SsdSteps& steps(int s, int h) const {
    return reinterpret_cast<SsdSteps*>(memory + layout.steps_at)[s * cut.heads + h];
  }
  __device__ const SsdResets& resets(int s) const { return steps(s, 0).resets; }  // of all heads
  __device__ unsigned* poison() const {  // two words of steps for each of the warp's channels
    return reinterpret_cast<unsigned*>(memory + layout.poison_at) + 2 * warp * ssd_slice;
  }

  // A thread has a piece of 16 bytes in every so many rows.
  __device__ void copy_states(const Track& from, T* to, int of) const {
    constexpr int pieces = N / 8;
    const int there = steps_there(of), apart = static_cast<int>(blockDim.x) / pieces;
    const int row0 = static_cast<int>(threadIdx.x) / pieces;
    const int column = static_cast<int>(threadIdx.x) % pieces * 8;
    if (row0 >= apart) return;
    const T* at =
        from.at<T>(place().b, first_step(of) + row0) + op.first_state(place().group) + column;
    const std::int64_t step = apart * from.step_pitch;
    auto into = shared_address(to + row0 * pitch + column);
#pragma unroll 4
    for (int row = row0; row < ssd_chunk && row < there; row += apart) {
      copy_16_bytes(into, at);
      at += step;
      into += static_cast<unsigned>(2 * apart * pitch);
    }
    if (there == ssd_chunk) return;
    for (int row = row0; row < ssd_chunk; row += apart) {
      if (row >= there) store_vec(to + row * pitch + column, Vec<T, 8>{});
    }
  }
  // Half a row of the warp's columns, of sixteen rows, is a lane's.
  __device__ void copy_x(int of) const {
    if (!works) return;
    const int lane = lane_id(), there = steps_there(of);
    const T* at = op.x.at<T>(place().b, first_step(of) + lane / 2) + op.channel(global_head()) + p +
                  lane % 2 * 8;
    T* to = x() + lane / 2 * layout.x_pitch + lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lane / 2 + 16 * i < there) {
        copy_16_bytes(shared_address(to), at);
      } else {
        store_vec(to, Vec<T, 8>{});
      }
      at += 16 * op.x.step_pitch;
      to += 16 * layout.x_pitch;
    }
  }
  // y is where x was.
  __device__ void store_y() const {
    const int lane = lane_id(), there = steps_there(chunk);
    T* at = op.y.out<T>(place().b, first_step(chunk) + lane / 2) + op.channel(global_head()) + p +
            lane % 2 * 8;
    const T* from = x() + lane / 2 * layout.x_pitch + lane % 2 * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (lane / 2 + 16 * i < there) Packed<T, 8>::load(from).store(at);
      at += 16 * op.y.step_pitch;
      from += 16 * layout.x_pitch;
    }
  }

  // f(where two neighbouring states of a channel are, they), for all of the thread.
  template <class F>
  __device__ __forceinline__ void each_state(std::int64_t row, F f) {
    const int lane = lane_id();
    const std::int64_t at = op.state(row, global_head(), p + lane / 4) + 2 * (lane % 4);
#pragma unroll
    for (int k = 0; k < N / 8; ++k) {
      f(at + 8 * k, S[k][0], S[k][1]);
      f(at + 8 * N + 8 * k, S[k][2], S[k][3]);
    }
  }
  // Not by selecting, which would need as many registers again.
  __device__ void clear_state() {
#pragma unroll
    for (int k = 0; k < N / 8; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) make_zero(S[k][i]);
    }
  }
  __device__ void load_state(const float* from, std::int64_t row) {
    each_state(row, [from](std::int64_t at, float& first, float& second) {
      const auto pair = load_vec<2>(from + at);
      first = pair.at[0];
      second = pair.at[1];
    });
  }
  __device__ void keep_state(float* to, std::int64_t row) {
    each_state(row, [to](std::int64_t at, float first, float second) {
      store_vec(to + at, Vec<float, 2>{{first, second}});
    });
  }
};

}  // namespace mamba::cuda
