// What one block does when it walks time for some channels of one batch row, in tiles of a few steps.
// Per tile:
//
//   fill     raw x, dt, z, B, C of the tile go to shared memory (cp.async, a tile or more ahead)
//   prepare  delta = softplus(dt + bias) and delta x, once per channel and step; B and C as f32
//   recur    h = exp(delta A) h + delta x B for `States` states a thread, four steps at a time, and that
//            thread's part of y
//   finish   the parts of y summed, plus D x, times silu(z), stored
//
// fill, prepare and finish have lanes along channels, as memory does. recur has `lanes` neighbouring
// threads per channel. Everything recur reads has time innermost in shared memory, [..][steps + 4]: one
// 16-byte load brings four steps, and the 4 words of padding put neighbouring rows in other banks.
//
// Steps past the end of the sequence are steps that change nothing: delta 0, delta x -0, B 0. No loop
// has a bound to check.
#pragma once

#include "kernels/scan_math.cuh"
#include "kernels/scan_operands.cuh"

namespace mamba::cuda {

// How a launch is cut, and where things lie in shared memory (offsets in bytes). Made on the host.
struct ScanCut {
  int lanes = 0;            // of a channel, a power of two; states held = lanes * States >= d_state
  int padded_states = 0;    // that product
  int channels = 0;         // of a block
  int channel_blocks = 0;   // per batch row
  int helper_begin = 0;     // threads from here on fill, prepare and finish
  int helpers = 0;          // how many
  int granule = 0;          // bytes of one copy of x, dt and z: 16, 8, 4, or one 16-bit element
  int granule_BC = 0;       // of B and C
  int row_bytes = 0;        // a step of x in shared memory
  int row_bytes_BC = 0;     // a step of B
  int y_pitch = 0;          // floats from channel to channel of the parts of y
  int stage = 0;            // one tile of raw operands
  int prepared = 0, prepared_bytes = 0;  // delta, delta x, B, C, resets; its buffers
  int parts = 0, parts_bytes = 0;        // of y
  std::int64_t chunk = 0;   // steps of a chunk
  std::int64_t chunks = 1;
  int launched_chunks = 1;  // fewer than chunks when summaries are made
  float* entries = nullptr;  // [batch, chunks, channels, d_state]: see scan_chunked.cu
  float* sums = nullptr;     // [batch, chunks, channels]
};

// Copies of 16, 8 or 4 bytes go past the registers; the first `valid` bytes come from memory and the
// rest are zeros. 2 bytes are a plain load: rows of odd alignment only.
__device__ __forceinline__ void copy_granule(char* to, const char* from, int bytes, int valid) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if (bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid));
  } else if (bytes == 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared), "l"(from), "r"(valid));
  } else if (bytes == 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(from), "r"(valid));
  } else {
    *reinterpret_cast<std::uint16_t*>(to) =
        valid > 0 ? *reinterpret_cast<const std::uint16_t*>(from) : std::uint16_t{0};
  }
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;"); }
template <int Pending>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
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

template <class T, int Steps, bool FewLanes>
struct ScanBlock {
  static constexpr int pitch = Steps + 4;
  static constexpr int quads = Steps / 4;

  const ScanOperands& op;
  const ScanCut& cut;
  char* shared;
  std::int64_t b, first, last;  // batch row; steps of this block
  int channel;                  // the first one
  int helper;                   // this thread's number among the helpers, < 0: none
  // What a helper does in every tile: channel, first group of four steps, and to the next group.
  int my_channel, my_quad, next_quad;
  Output output;
  float bias;

  __device__ ScanBlock(const ScanOperands& operands, const ScanCut& cut_, char* memory)
      : op(operands), cut(cut_), shared(memory) {
    const unsigned block = blockIdx.x / static_cast<unsigned>(cut.channel_blocks);
    channel = static_cast<int>(blockIdx.x % static_cast<unsigned>(cut.channel_blocks)) * cut.channels;
    const auto launched = static_cast<unsigned>(cut.launched_chunks);
    b = block / launched;
    first = block % launched * cut.chunk;
    last = min(first + cut.chunk, op.time);
    helper = static_cast<int>(threadIdx.x) - cut.helper_begin;
    next_quad = cut.helpers / cut.channels;
    my_channel = helper < 0 ? 0 : helper % cut.channels;
    my_quad = helper < 0 || helper >= next_quad * cut.channels ? quads : helper / cut.channels;
    const bool there = channel + my_channel < op.channels;
    output.has_D = op.D != nullptr;
    output.has_z = op.z.data != nullptr;
    if (op.D != nullptr && there) output.D = op.D[channel + my_channel];
    bias = op.dt_bias != nullptr && there ? op.dt_bias[channel + my_channel] : 0;
  }

  __device__ std::int64_t chunk() const { return first / cut.chunk; }
  __device__ int tiles() const { return static_cast<int>((last - first + Steps - 1) / Steps); }
  __device__ int block_channels() const { return min(cut.channels, op.channels - channel); }

  // Shared memory: raw operands of a stage, then what a tile is prepared as.
  __device__ char* raw(int stage, int which) const {
    return shared + stage * cut.stage + which * Steps * cut.row_bytes;
  }
  __device__ char* raw_BC(int stage, int which) const {
    return raw(stage, 3) + which * Steps * cut.row_bytes_BC;
  }
  __device__ float* prepared(int buffer) const {
    return reinterpret_cast<float*>(shared + cut.prepared + buffer * cut.prepared_bytes);
  }
  __device__ float* delta(int buffer) const { return prepared(buffer); }
  __device__ float* delta_x(int buffer) const { return delta(buffer) + cut.channels * pitch; }
  __device__ float* B(int buffer) const { return delta(buffer) + 2 * cut.channels * pitch; }
  __device__ float* C(int buffer) const { return B(buffer) + cut.padded_states * pitch; }
  __device__ unsigned* resets(int buffer) const {
    return reinterpret_cast<unsigned*>(B(buffer) + 2 * cut.padded_states * pitch);
  }
  __device__ float* parts(int buffer) const {
    return reinterpret_cast<float*>(shared + cut.parts + buffer * cut.parts_bytes);
  }

  // ---- fill -------------------------------------------------------------------------------------

  __device__ void fill_track(const ScanTrack& track, char* to, std::int64_t t0, int element,
                             int row_bytes, int valid_bytes, int granule) const {
    const int per_row = row_bytes / granule;
    int row = helper / per_row;
    int column = helper - row * per_row;
    const int rows = cut.helpers / per_row;
    const int columns = cut.helpers - rows * per_row;
    const auto* from = reinterpret_cast<const char*>(track.at<T>(b, t0) + element);
    const std::int64_t step_bytes = track.step_pitch * static_cast<std::int64_t>(sizeof(T));
    const int steps = static_cast<int>(min(last - t0, std::int64_t{Steps}));
#pragma unroll 1
    while (row < Steps) {
      const int byte = column * granule;
      const int valid = row < steps ? max(0, min(granule, valid_bytes - byte)) : 0;
      const char* source = valid > 0 ? from + row * step_bytes + byte : from;
      copy_granule(to + row * row_bytes + byte, source, granule, valid);
      row += rows;
      column += columns;
      if (column >= per_row) {
        column -= per_row;
        ++row;
      }
    }
  }

  __device__ void fill(int tile, int stage) const {
    const std::int64_t t0 = first + std::int64_t{tile} * Steps;
    const int valid = block_channels() * static_cast<int>(sizeof(T));
    const int valid_BC = op.d_state * static_cast<int>(sizeof(T));
    fill_track(op.x, raw(stage, 0), t0, channel, cut.row_bytes, valid, cut.granule);
    fill_track(op.dt, raw(stage, 1), t0, channel, cut.row_bytes, valid, cut.granule);
    if (output.has_z) {
      fill_track(op.z, raw(stage, 2), t0, channel, cut.row_bytes, valid, cut.granule);
    }
    fill_track(op.B, raw_BC(stage, 0), t0, 0, cut.row_bytes_BC, valid_BC, cut.granule_BC);
    fill_track(op.C, raw_BC(stage, 1), t0, 0, cut.row_bytes_BC, valid_BC, cut.granule_BC);
    if (op.reset != nullptr && helper < Steps) {
      const std::int32_t* flags = op.reset + b * op.reset_pitch;
      const bool there = t0 + helper < last;
      copy_granule(raw_BC(stage, 2) + 4 * helper,
                   reinterpret_cast<const char*>(there ? flags + t0 + helper : flags), 4,
                   there ? 4 : 0);
    }
  }

  // ---- prepare ----------------------------------------------------------------------------------

  __device__ void prepare(int tile, int stage, int buffer) const {
    const std::int64_t t0 = first + std::int64_t{tile} * Steps;
    const int steps = static_cast<int>(min(last - t0, std::int64_t{Steps}));
    const int row = cut.row_bytes / static_cast<int>(sizeof(T));
    const T* x = reinterpret_cast<const T*>(raw(stage, 0)) + my_channel;
    const T* dt = reinterpret_cast<const T*>(raw(stage, 1)) + my_channel;
    float* to_delta = delta(buffer) + my_channel * pitch;
    float* to_delta_x = delta_x(buffer) + my_channel * pitch;
#pragma unroll 1
    for (int q = my_quad; q < quads; q += next_quad) {
      Four d, u;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = 4 * q + i;
        const float value = softplus(__fadd_rn(to_float(dt[t * row]), bias));
        d.at[i] = t < steps ? value : 0;
        u.at[i] = t < steps ? __fmul_rn(value, to_float(x[t * row])) : -0.0f;
      }
      store_four(to_delta + 4 * q, d);
      store_four(to_delta_x + 4 * q, u);
    }
    prepare_BC(stage, buffer);
    if (op.reset != nullptr && helper < 32) {
      const auto* flags = reinterpret_cast<const std::int32_t*>(raw_BC(stage, 2));
      const unsigned mask = __ballot_sync(0xffffffffu, helper < Steps && flags[helper] != 0);
      if (helper == 0) *resets(buffer) = mask;
    }
  }

  __device__ void prepare_BC(int stage, int buffer) const {
    const int row = cut.row_bytes_BC / static_cast<int>(sizeof(T));
    const int states = cut.padded_states;
#pragma unroll 1
    for (int i = helper; i < 2 * quads * states; i += cut.helpers) {
      const int n = i & (states - 1);
      const int q = i / states % quads;
      const int which = i >= quads * states ? 1 : 0;
      const T* from = reinterpret_cast<const T*>(raw_BC(stage, which)) + 4 * q * row + n;
      Four v;
#pragma unroll
      for (int j = 0; j < 4; ++j) v.at[j] = to_float(from[j * row]);
      store_four(B(buffer) + (which * states + n) * pitch + 4 * q, v);
    }
  }

  // ---- finish -----------------------------------------------------------------------------------

  __device__ void finish(int tile, int stage, int buffer) const {
    const std::int64_t t0 = first + std::int64_t{tile} * Steps;
    const int steps = static_cast<int>(min(last - t0, std::int64_t{Steps}));
    if (channel + my_channel >= op.channels) return;
    const int row = cut.row_bytes / static_cast<int>(sizeof(T));
    const T* x = reinterpret_cast<const T*>(raw(stage, 0)) + my_channel;
    const T* z = reinterpret_cast<const T*>(raw(stage, 2)) + my_channel;
    const float* from = parts(buffer) + my_channel * cut.y_pitch;
    T* y = op.y.out<T>(b, t0) + channel + my_channel;
#pragma unroll 1
    for (int q = my_quad; q < quads; q += next_quad) {
      const Four sum = tree_sum<FewLanes>(from + 4 * q, pitch, cut.lanes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = 4 * q + i;
        const float gate = output.has_z ? to_float(z[t * row]) : 0;
        const float value = output.of<T>(sum.at[i], to_float(x[t * row]), gate);
        if (t < steps) y[t * op.y.step_pitch] = from_float<T>(value);
      }
    }
  }

  // A batch row without a state: its y and step states are all zeros (padding) or all NaN.
  __device__ void finish_absent(bool padding) const {
    const float value = padding ? 0 : __int_as_float(0x7fffffff);
    const int count = block_channels();
    const int states = op.step_states.data != nullptr ? count * op.d_state : 0;
    for (std::int64_t t = first; t < last; ++t) {
      T* y = op.y.out<T>(b, t) + channel;
      for (int c = threadIdx.x; c < count; c += blockDim.x) y[c] = from_float<T>(value);
      for (int i = threadIdx.x; i < states; i += blockDim.x) {
        op.step_states.out<float>(b, t)[channel * op.d_state + i] = value;
      }
    }
  }
};

}  // namespace mamba::cuda
