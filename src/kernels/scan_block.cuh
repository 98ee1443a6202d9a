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
// A tile that ends early, has resets in it or leaves its states is walked carefully, any other without a
// condition.
#pragma once

#include "kernels/scan_math.cuh"
#include "kernels/scan_operands.cuh"

namespace mamba::cuda {

// How a launch is cut, and where things lie in shared memory (offsets in bytes). Made on the host.
struct ScanCut {
  int lanes = 0;            // of a channel, a power of two; states held = lanes * States >= d_state
  int padded_states = 0;    // that product, a power of two
  int channels = 0;         // of a block
  int channel_blocks = 0;   // per batch row
  int helper_begin = 0;     // threads from here on fill, prepare and finish
  int helpers = 0;          // how many
  int granule = 0;          // bytes of one copy of x, dt and z: 16, 8, 4, or one 16-bit element
  int granule_BC = 0;       // of B and C
  int row_bytes = 0;        // copied of a step of x, dt, z
  int row_bytes_BC = 0;     // of B and C, and their pitch in shared memory
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
template <int Bytes>
__device__ __forceinline__ void copy_granule(char* to, const char* from, int valid) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(valid));
  } else if constexpr (Bytes > 2) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared), "l"(from),
                 "r"(valid), "n"(Bytes));
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

// `Width`: channels of a block at most; the pitch of raw x, dt and z, so that a helper reaches every
// step of its channel by a constant.
template <class T, int Steps, int Width, bool FewLanes>
struct ScanBlock {
  static constexpr int pitch = Steps + 4;
  static constexpr int quads = Steps / 4;
  static constexpr int element = static_cast<int>(sizeof(T));
  static constexpr int raw_bytes = Steps * Width * element;  // of x, of dt, of z

  const ScanOperands& op;
  const ScanCut& cut;
  char* shared;
  std::int64_t b, first;  // batch row; first step of this block
  int length;             // its steps
  int channel;            // the first one
  int helper;             // this thread's number among the helpers, < 0: none
  // What a helper does in every tile: channel, first group of four steps, and to the next group.
  int my_channel, my_quad, next_quad;
  Output output;
  float bias;
  // And what it copies: from where in the first tile, first row, rows to the next, bytes to copy.
  std::int64_t from_x, from_dt, from_z;
  int my_row, next_row, to, valid;

  __device__ ScanBlock(const ScanOperands& operands, const ScanCut& cut_, char* memory)
      : op(operands), cut(cut_), shared(memory) {
    const unsigned block = blockIdx.x / static_cast<unsigned>(cut.channel_blocks);
    channel =
        static_cast<int>(blockIdx.x % static_cast<unsigned>(cut.channel_blocks)) * cut.channels;
    const auto launched = static_cast<unsigned>(cut.launched_chunks);
    b = block / launched;
    first = block % launched * cut.chunk;
    length = static_cast<int>(min(cut.chunk, op.time - first));
    helper = static_cast<int>(threadIdx.x) - cut.helper_begin;
    next_quad = cut.helpers / cut.channels;
    my_channel = helper < 0 ? 0 : helper % cut.channels;
    my_quad = helper < 0 || helper >= next_quad * cut.channels ? quads : helper / cut.channels;
    const bool there = channel + my_channel < op.channels;
    output.has_D = op.D != nullptr;
    output.has_z = op.z.data != nullptr;
    if (op.D != nullptr && there) output.D = op.D[channel + my_channel];
    bias = op.dt_bias != nullptr && there ? op.dt_bias[channel + my_channel] : 0;
    plan_copies();
  }

  __device__ void plan_copies() {
    const int per_row = cut.row_bytes / cut.granule;
    next_row = cut.helpers / per_row;
    my_row = helper < 0 || helper >= next_row * per_row ? Steps : helper / per_row;
    const int byte = helper < 0 ? 0 : helper % per_row * cut.granule;
    to = my_row * Width * element + byte;
    valid = max(0, min(cut.granule, block_channels() * element - byte));
    const auto offset = [&](const ScanTrack& track) {
      return (b * track.row_pitch + (first + my_row) * track.step_pitch + channel) * element + byte;
    };
    from_x = offset(op.x);
    from_dt = offset(op.dt);
    from_z = offset(op.z);
  }

  __device__ std::int64_t chunk() const { return first / cut.chunk; }
  __device__ int tiles() const { return (length + Steps - 1) / Steps; }
  __device__ int block_channels() const { return min(cut.channels, op.channels - channel); }
  // Steps of a tile that are in the sequence.
  __device__ int steps_of(int tile) const {
    return min(length - tile * Steps, Steps);
  }

  // Shared memory: raw operands of a stage, then what a tile is prepared as.
  __device__ char* raw(int stage, int which) const {
    return shared + stage * cut.stage + which * raw_bytes;
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

  template <int Bytes>
  __device__ __forceinline__ void fill_channels(int tile, int stage, int steps) const {
    const auto step = [&](const ScanTrack& track) { return track.step_pitch * element; };
    const auto first_of = [&](const ScanTrack& track, std::int64_t from) {
      return static_cast<const char*>(track.data) + from + std::int64_t{tile} * Steps * step(track);
    };
    const char* x = first_of(op.x, from_x);
    const char* dt = first_of(op.dt, from_dt);
    const char* z = first_of(op.z, from_z);
    char* target = raw(stage, 0) + to;
#pragma unroll 1
    for (int row = my_row; row < Steps; row += next_row) {
      const int bytes = row < steps ? valid : 0;
      copy_granule<Bytes>(target, x, bytes);
      copy_granule<Bytes>(target + raw_bytes, dt, bytes);
      if (output.has_z) copy_granule<Bytes>(target + 2 * raw_bytes, z, bytes);
      target += next_row * Width * element;
      x += next_row * step(op.x);
      dt += next_row * step(op.dt);
      z += next_row * step(op.z);
    }
  }

  template <int Bytes>
  __device__ __forceinline__ void fill_states(int tile, int stage, int steps) const {
    constexpr int shift = Bytes == 16 ? 4 : Bytes == 8 ? 3 : Bytes == 4 ? 2 : 1;
    const int per_row = cut.row_bytes_BC >> shift;  // a power of two
    const int row_shift = 31 - __clz(per_row);
    const std::int64_t t0 = first + std::int64_t{tile} * Steps;
    const auto* B = reinterpret_cast<const char*>(op.B.at<T>(b, t0));
    const auto* C = reinterpret_cast<const char*>(op.C.at<T>(b, t0));
    const int valid_row = op.d_state * element;
#pragma unroll 1
    for (int i = helper; i < Steps * per_row; i += cut.helpers) {
      const int row = i >> row_shift;
      const int byte = (i & (per_row - 1)) << shift;
      const int bytes = row < steps ? max(0, min(Bytes, valid_row - byte)) : 0;
      char* target = raw_BC(stage, 0) + row * cut.row_bytes_BC + byte;
      copy_granule<Bytes>(target, B + row * op.B.step_pitch * element + byte, bytes);
      copy_granule<Bytes>(target + Steps * cut.row_bytes_BC,
                          C + row * op.C.step_pitch * element + byte, bytes);
    }
  }

  __device__ __forceinline__ void fill(int tile, int stage) const {
    const int steps = steps_of(tile);
    switch (cut.granule) {
      case 16: fill_channels<16>(tile, stage, steps); break;
      case 8: fill_channels<8>(tile, stage, steps); break;
      case 4: fill_channels<4>(tile, stage, steps); break;
      default: fill_channels<element>(tile, stage, steps);
    }
    switch (cut.granule_BC) {
      case 16: fill_states<16>(tile, stage, steps); break;
      case 8: fill_states<8>(tile, stage, steps); break;
      case 4: fill_states<4>(tile, stage, steps); break;
      default: fill_states<element>(tile, stage, steps);
    }
    if (op.reset != nullptr && helper < Steps) {
      const std::int32_t* flag = op.reset + b * op.reset_pitch + first + tile * Steps + helper;
      copy_granule<4>(raw_BC(stage, 2) + 4 * helper, reinterpret_cast<const char*>(flag),
                      helper < steps ? 4 : 0);
    }
  }

  // ---- prepare ----------------------------------------------------------------------------------

  __device__ __forceinline__ void prepare(int stage, int buffer) const {
    const T* x = reinterpret_cast<const T*>(raw(stage, 0)) + my_channel;
    const T* dt = reinterpret_cast<const T*>(raw(stage, 1)) + my_channel;
    float* to_delta = delta(buffer) + my_channel * pitch;
    float* to_delta_x = delta_x(buffer) + my_channel * pitch;
#pragma unroll 1
    for (int q = my_quad; q < quads; q += next_quad) {
      Four d, u;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (4 * q + i) * Width;
        d.at[i] = softplus(__fadd_rn(to_float(dt[at]), bias));
        u.at[i] = __fmul_rn(d.at[i], to_float(x[at]));
      }
      store_four(to_delta + 4 * q, d);
      store_four(to_delta_x + 4 * q, u);
    }
    prepare_states(stage, buffer);
    if (op.reset != nullptr && helper < 32) {
      const auto* flags = reinterpret_cast<const std::int32_t*>(raw_BC(stage, 2));
      const unsigned mask = __ballot_sync(0xffffffffu, helper < Steps && flags[helper] != 0);
      if (helper == 0) *resets(buffer) = mask;
    }
  }

  // B and C, contiguous in both raw and prepared memory, as one table of 2 padded_states columns.
  __device__ __forceinline__ void prepare_states(int stage, int buffer) const {
    const int row = cut.row_bytes_BC / element;
    const int shift = 31 - __clz(cut.padded_states);
    const T* table = reinterpret_cast<const T*>(raw_BC(stage, 0));
#pragma unroll 1
    for (int i = helper; i < 2 * quads << shift; i += cut.helpers) {
      const int n = i & (cut.padded_states - 1);
      const int q = (i >> shift) & (quads - 1);
      const int which = (i >> shift) / quads;
      const T* from = table + (which * Steps + 4 * q) * row + n;
      Four v;
#pragma unroll
      for (int j = 0; j < 4; ++j) v.at[j] = to_float(from[j * row]);
      store_four(B(buffer) + ((which << shift) + n) * pitch + 4 * q, v);
    }
  }

  // ---- finish -----------------------------------------------------------------------------------

  __device__ __forceinline__ void finish(int tile, int stage, int buffer) const {
    if (channel + my_channel >= op.channels) return;
    const int steps = steps_of(tile);
    const T* x = reinterpret_cast<const T*>(raw(stage, 0)) + my_channel;
    const T* z = reinterpret_cast<const T*>(raw(stage, 2)) + my_channel;
    const float* from = parts(buffer) + my_channel * cut.y_pitch;
    T* y = op.y.out<T>(b, first + std::int64_t{tile} * Steps + 4 * my_quad) + channel + my_channel;
#pragma unroll 1
    for (int q = my_quad; q < quads; q += next_quad) {
      Four sum = tree_sum<FewLanes>(from + 4 * q, pitch, cut.lanes);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (4 * q + i) * Width;
        if (output.has_D) sum.at[i] = __fmaf_rn(output.D, to_float(x[at]), sum.at[i]);
        if (output.has_z) sum.at[i] = __fmul_rn(sum.at[i], silu<T>(to_float(z[at])));
      }
      T* step = y;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (4 * q + i < steps) *step = from_float<T>(sum.at[i]);
        step += op.y.step_pitch;
      }
      y += 4 * next_quad * op.y.step_pitch;
    }
  }

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
