// A block of the kernel that walks time: some channels of one batch row, through its steps (or a chunk
// of them) in tiles. Some warps walk the recurrence, two more serve them:
//
//   fill     raw x, dt, z, B, C of a tile go to shared memory (cp.async), tiles ahead
//   prepare  delta = softplus(dt + bias) and delta x, once per channel and step; B and C as f32
//   recur    h = exp(delta A) h + delta x B for `States` states a thread, four steps at a time, and that
//            thread's part of y
//   finish   the parts of y summed, plus D x, times silu(z), stored
//
// While tile i recurs, the helpers finish tile i - 1 and prepare tile i + 1: one barrier a tile. recur is
// bound by the special-function unit, the others by instruction issue: they fit beside each other.
//
// Helpers have lanes along channels, as memory does, two channels a thread. recur has `lanes`
// neighbouring threads per channel. Everything recur reads has time innermost in shared memory,
// [..][steps + 4]: one 16-byte load brings four steps, and the 4 words of padding put neighbouring rows
// in other banks. Rows of channels are all even ones, then all odd ones, so that a helper's neighbours
// write to neighbouring rows.
#pragma once

#include "kernels/scan_math.cuh"
#include "kernels/scan_operands.cuh"

namespace mamba::cuda {

// How a launch is cut, and where things lie in shared memory (offsets in bytes). Made on the host.
struct ScanCut {
  int lanes = 0;           // of a channel, a power of two; states held = lanes * States >= d_state
  int padded_states = 0;   // that product, a power of two
  int channel_blocks = 0;  // per batch row
  int granule = 0;         // bytes of one copy of x, dt and z: 16, 8, 4, or one 16-bit element
  int granule_BC = 0;      // of B and C
  bool paired_y = false;   // two channels of y can be stored at once
  int row_bytes_BC = 0;    // of a step of B or C in shared memory
  int stage = 0;           // one tile of raw operands
  int prepared = 0, prepared_bytes = 0;  // delta, delta x, B, C, resets, parts of y; two buffers
  int parts = 0;                         // within: of y, channel by channel and lane by lane. They take
  int part_channel = 0, part_lane = 0;   // the place of delta and delta x if there are at most two lanes
  std::int64_t chunk = 0;                // steps of a chunk
  int first_chunk = 0, launched_chunks = 1;
  std::int64_t chunks = 1;   // of a batch row, all
  float* entries = nullptr;  // [batch, chunks - 1, channels, d_state]: see scan_chunked.cu
  float* sums = nullptr;     // [batch, chunks - 1, channels]
};

// The barrier of a block, wherever its callers are in the code.
__device__ __forceinline__ void block_barrier() {
  asm volatile("bar.sync 1, %0;" ::"r"(blockDim.x) : "memory");
}

// The same value, but what follows from it is computed where it is used: kept in registers over the
// whole loop, the addresses of every width of copy alone would take 30.
__device__ __forceinline__ int recomputed(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

struct Four {
  float at[4];
};
__device__ __forceinline__ Four load_four(const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
__device__ __forceinline__ void store_four(float* to, const Four& v) {
  *reinterpret_cast<float4*>(to) = make_float4(v.at[0], v.at[1], v.at[2], v.at[3]);
}
__device__ __forceinline__ Four operator+(Four a, const Four& b) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a.at[i] = __fadd_rn(a.at[i], b.at[i]);
  return a;
}

// The sum of `Count` parts, neighbours first: ((0 + 1) + (2 + 3)) + ..., the tree that every plan
// follows over pairs of states.
template <int Count>
__device__ __forceinline__ Four tree_sum(const float* parts, int pitch) {
  if constexpr (Count == 1) {
    return load_four(parts);
  } else {
    return tree_sum<Count / 2>(parts, pitch) + tree_sum<Count / 2>(parts + Count / 2 * pitch, pitch);
  }
}
// A binary counter of sums of 4, 8, 16 and 32 parts: the i-th four joins those it completes.
template <int Level>
__device__ __forceinline__ void carry(Four (&waiting)[4], int i, Four& sum) {
  if ((i >> Level & 1) == 0) {
    waiting[Level] = sum;
  } else {
    sum = waiting[Level] + sum;
    if constexpr (Level < 3) carry<Level + 1>(waiting, i, sum);
  }
}
// `Few`: at most four.
template <bool Few>
__device__ __forceinline__ Four tree_sum(const float* parts, int pitch, int count) {
  if (count == 1) return tree_sum<1>(parts, pitch);
  if (count == 2) return tree_sum<2>(parts, pitch);
  Four sum = tree_sum<4>(parts, pitch);
  if constexpr (!Few) {
    Four waiting[4] = {sum};
#pragma unroll 1
    for (int i = 1; i < count / 4; ++i) {
      sum = tree_sum<4>(parts + 4 * i * pitch, pitch);
      carry<0>(waiting, i, sum);
    }
  }
  return sum;
}

// A block has Channels channels (its last ones may not exist) and `lanes` threads for each, then the
// helpers. FewLanes: at most four.
template <class T, int States, int Steps, int Channels, bool FewLanes>
struct ScanBlock {
  using Element = T;
  static constexpr int states = States, steps = Steps, channels = Channels;
  static constexpr bool few_lanes = FewLanes;
  static constexpr bool step_states = States == 4;  // can leave the state after every step
  static constexpr int half = Channels / 2;
  static constexpr int pitch = Steps + 4;
  static constexpr int lane_pitch = States * pitch + 4;  // B and C, lane to lane
  static constexpr int element = static_cast<int>(sizeof(T));
  static constexpr int raw_bytes = Steps * Channels * element;  // of x, of dt, of z
  // Raw tiles held: from the one being finished to the one being filled.
  static constexpr int stages = element == 2 ? 5 : 4;

  const ScanOperands& op;
  const ScanCut& cut;
  char* shared;
  std::int64_t b, first;  // batch row; first step of this block
  int chunk, length;      // its chunk, its steps
  int channel;            // the first one

  __device__ ScanBlock(const ScanOperands& operands, const ScanCut& cut_, char* memory)
      : op(operands), cut(cut_), shared(memory) {
    const unsigned block = blockIdx.x / static_cast<unsigned>(cut.channel_blocks);
    channel = static_cast<int>(blockIdx.x % static_cast<unsigned>(cut.channel_blocks)) * Channels;
    const auto launched = static_cast<unsigned>(cut.launched_chunks);
    b = block / launched;
    chunk = static_cast<int>(block % launched) + cut.first_chunk;
    first = chunk * cut.chunk;
    length = static_cast<int>(min(cut.chunk, op.time - first));
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ int workers() const { return Channels * cut.lanes; }
  __device__ int tiles() const { return (length + Steps - 1) / Steps; }
  __device__ int block_channels() const { return min(Channels, op.channels - channel); }
  // Steps of a tile that are in the sequence.
  __device__ int steps_of(int tile) const { return min(length - tile * Steps, Steps); }

  // Shared memory: D and dt_bias; raw operands of a tile (stage: tile modulo stages), and what it is prepared as
  // (buffer: tile modulo 2).
  static constexpr int front_bytes = 2 * 4 * (Channels > 2 ? Channels : 4);
  __device__ float* D() const { return reinterpret_cast<float*>(shared); }
  __device__ float* bias() const { return D() + Channels; }
  __device__ char* raw(int stage, int which) const {
    return shared + front_bytes + stage * cut.stage + which * raw_bytes;
  }
  __device__ char* raw_BC(int stage, int which) const {
    return raw(stage, 3) + which * Steps * cut.row_bytes_BC;
  }
  __device__ float* delta(int buffer) const {
    return reinterpret_cast<float*>(shared + cut.prepared + buffer * cut.prepared_bytes);
  }
  __device__ float* delta_x(int buffer) const { return delta(buffer) + Channels * pitch; }
  __device__ float* B(int buffer) const { return delta(buffer) + 2 * Channels * pitch; }
  __device__ float* C(int buffer) const { return B(buffer) + cut.lanes * lane_pitch; }
  __device__ unsigned* resets(int buffer) const {
    return reinterpret_cast<unsigned*>(B(buffer) + 2 * cut.lanes * lane_pitch);
  }
  __device__ float* parts(int buffer) const { return delta(buffer) + cut.parts; }

  // A batch row without a state: its y and step states are all zeros (padding) or all NaN.
  __device__ void finish_absent(bool padding) const {
    const float value = padding ? 0 : __int_as_float(0x7fffffff);
    const int count = block_channels();
    const int states = op.step_states.data != nullptr ? count * op.d_state : 0;
    for (std::int64_t t = first; t < first + length; ++t) {
      T* y = op.y.out<T>(b, t) + channel;
      for (int c = threadIdx.x; c < count; c += blockDim.x) y[c] = from_float<T>(value);
      for (int i = threadIdx.x; i < states; i += blockDim.x) {
        op.step_states.out<float>(b, t)[channel * op.d_state + i] = value;
      }
    }
  }
};

}  // namespace mamba::cuda
