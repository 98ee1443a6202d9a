// What one block does when it walks time for some channels of one batch row, in tiles of a few
// steps. Per tile:
//
//   fill     raw x, dt, z, B, C of the tile go to shared memory (cp.async, a tile or more ahead)
//   prepare  delta = softplus(dt + bias) and delta x, once per channel and step; B and C as f32
//   recur    h = exp(delta A) h + delta x B for `States` states a thread, four steps at a time, and
//   that
//            thread's part of y
//   finish   the parts of y summed, plus D x, times silu(z), stored
//
// fill, prepare and finish have lanes along channels, as memory does, two channels a thread. recur
// has `lanes` neighbouring threads per channel. Everything recur reads has time innermost in shared
// memory,
// [..][steps + 4]: one 16-byte load brings four steps, and the 4 words of padding put neighbouring
// rows in other banks. Rows of channels are all even ones, then all odd ones, so that a helper's
// neighbours write to neighbouring rows.
//
// A tile that ends early, has resets in it or leaves its states is walked carefully, any other
// without a condition.
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
  int sources = 0;         // see ScanBlock
  int prepared = 0;        // delta, delta x, B, C, resets
  int parts = 0;  // of y, channel by channel and lane by lane: they take the place of delta
  int part_channel = 0, part_lane = 0;  // and delta x if there are at most two; pitches in floats
  std::int64_t chunk = 0;               // steps of a chunk
  int first_chunk = 0, launched_chunks = 1;
  std::int64_t chunks = 1;   // of a batch row, all
  float* entries = nullptr;  // [batch, chunks - 1, channels, d_state]: see scan_chunked.cu
  float* sums = nullptr;     // [batch, chunks - 1, channels]
};

// Copies of 16, 8 or 4 bytes go past the registers; the first `valid` bytes come from memory and
// the rest are zeros. 2 bytes are a plain load: rows of odd alignment only.
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
__device__ __forceinline__ void copies_wait_all() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

// The same value, but what follows from it is computed where it is used and not kept in registers
// over the whole loop.
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
    return tree_sum<Count / 2>(parts, pitch) +
           tree_sum<Count / 2>(parts + Count / 2 * pitch, pitch);
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

// A block has Channels channels (its last ones may not exist) and `lanes` threads for each.
// FewLanes: at most four. All that a helper has to know about its place follows from constants, so
// that it need not be kept in registers, which are short.
template <class T, int States, int Steps, int Channels, bool FewLanes>
struct ScanBlock {
  static constexpr int states = States, steps = Steps, channels = Channels;
  static constexpr int half = Channels / 2;
  static constexpr int pitch = Steps + 4;
  static constexpr int lane_pitch = States * pitch + 4;  // B and C, lane to lane
  static constexpr int quads = Steps / 4;
  static constexpr int element = static_cast<int>(sizeof(T));
  static constexpr int raw_bytes = Steps * Channels * element;  // of x, of dt, of z

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
    for (int i = thread(); i < Channels; i += threads()) {
      const int c = channel + i;
      constants()[i] = op.D != nullptr && c < op.channels ? op.D[c] : 0;
      constants()[Channels + i] = op.dt_bias != nullptr && c < op.channels ? op.dt_bias[c] : 0;
    }
    if (thread() == 0) {
      place(0, op.B, 0);
      place(1, op.C, 0);
      place(2, op.y, channel);
    }
    const int per_row = Channels * element / cut.granule;
    const auto begin = [&](const ScanTrack& track) {
      return reinterpret_cast<const char*>(track.at<T>(b, first + thread() / per_row) + channel) +
             thread() % per_row * cut.granule;
    };
    sources()[0] = begin(op.x);
    sources()[threads()] = begin(op.dt);
    sources()[2 * threads()] = begin(op.z);
    __syncthreads();
  }

  // Where this thread's first copies of the next tile of x, dt and z come from, threads() apart;
  // and where the tiles of B, C and y begin, with the bytes from tile to tile. In shared memory,
  // because registers are short and 64-bit products long.
  __device__ const char** sources() const {
    return reinterpret_cast<const char**>(shared + cut.sources) + thread();
  }
  struct Cursor {
    char* at;
    std::int64_t tile_bytes;
  };
  __device__ Cursor& cursor(int which) const {
    return reinterpret_cast<Cursor*>(shared + 8 * Channels)[which];
  }
  __device__ void place(int which, const ScanTrack& track, int c) const {
    cursor(which) = {reinterpret_cast<char*>(track.out<T>(b, first) + c),
                     track.step_pitch * Steps * element};
  }
  __device__ __forceinline__ void advance_cursor(int which) const {
    cursor(which).at += cursor(which).tile_bytes;
  }

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int threads() { return static_cast<int>(blockDim.x); }
  // In prepare and finish: this thread's pair of channels, its first four steps, and to the next
  // four.
  __device__ static int pair() { return thread() % half; }
  __device__ static int first_quad() { return thread() / half; }
  __device__ static int quads_at_once() { return threads() / half; }

  __device__ int tiles() const { return (length + Steps - 1) / Steps; }
  __device__ int block_channels() const { return min(Channels, op.channels - channel); }
  // Steps of a tile that are in the sequence.
  __device__ int steps_of(int tile) const { return min(length - tile * Steps, Steps); }

  // Shared memory: D and dt_bias, cursors, raw operands of two stages, then what a tile is prepared
  // as.
  static constexpr int front_bytes = 8 * Channels + 3 * 16;
  __device__ float* constants() const { return reinterpret_cast<float*>(shared); }
  __device__ char* raw(int stage, int which) const {
    return shared + front_bytes + stage * cut.stage + which * raw_bytes;
  }
  __device__ char* raw_BC(int stage, int which) const {
    return raw(stage, 3) + which * Steps * cut.row_bytes_BC;
  }
  __device__ float* delta() const { return reinterpret_cast<float*>(shared + cut.prepared); }
  __device__ float* delta_x() const { return delta() + Channels * pitch; }
  __device__ float* B() const { return delta() + 2 * Channels * pitch; }
  __device__ float* C() const { return B() + cut.lanes * lane_pitch; }
  __device__ unsigned* resets() const {
    return reinterpret_cast<unsigned*>(B() + 2 * cut.lanes * lane_pitch);
  }
  __device__ float* parts() const { return reinterpret_cast<float*>(shared + cut.parts); }

  // ---- fill -------------------------------------------------------------------------------------

  template <int Bytes>
  __device__ __forceinline__ void fill_channels(int stage, int steps) const {
    constexpr int per_row = Channels * element / Bytes > 0 ? Channels * element / Bytes : 1;
    const int rows = threads() / per_row;
    const int byte = thread() % per_row * Bytes;
    const int valid = max(0, min(Bytes, block_channels() * element - byte));
    const char *x = sources()[0], *dt = sources()[threads()], *z = sources()[2 * threads()];
    sources()[0] = x + op.x.step_pitch * (Steps * element);
    sources()[threads()] = dt + op.dt.step_pitch * (Steps * element);
    sources()[2 * threads()] = z + op.z.step_pitch * (Steps * element);
    char* to = raw(stage, 0) + thread() / per_row * (Channels * element) + byte;
#pragma unroll 1
    for (int row = thread() / per_row; row < Steps; row += rows) {
      const int bytes = row < steps ? valid : 0;
      copy_granule<Bytes>(to, x, bytes);
      copy_granule<Bytes>(to + raw_bytes, dt, bytes);
      if (op.z.data != nullptr) copy_granule<Bytes>(to + 2 * raw_bytes, z, bytes);
      to += rows * (Channels * element);
      x += op.x.step_pitch * (rows * element);
      dt += op.dt.step_pitch * (rows * element);
      z += op.z.step_pitch * (rows * element);
    }
  }

  template <int Bytes>
  __device__ __forceinline__ void fill_states(int stage, int steps) const {
    constexpr int shift = Bytes == 16 ? 4 : Bytes == 8 ? 3 : Bytes == 4 ? 2 : 1;
    const int per_row = cut.row_bytes_BC >> shift;  // a power of two
    const int row_shift = 31 - __clz(per_row);
    const char* B = cursor(0).at;
    const char* C = cursor(1).at;
    const int valid_row = op.d_state * element;
#pragma unroll 1
    for (int i = thread(); i < Steps * per_row; i += threads()) {
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
      case 16:
        fill_channels<16>(stage, steps);
        break;
      case 8:
        fill_channels<8>(stage, steps);
        break;
      case 4:
        fill_channels<4>(stage, steps);
        break;
      default:
        fill_channels<element>(stage, steps);
    }
    switch (cut.granule_BC) {
      case 16:
        fill_states<16>(stage, steps);
        break;
      case 8:
        fill_states<8>(stage, steps);
        break;
      case 4:
        fill_states<4>(stage, steps);
        break;
      default:
        fill_states<element>(stage, steps);
    }
    const int i = thread();
    if (op.reset != nullptr && i < Steps) {
      const std::int32_t* flag =
          op.reset + b * op.reset_pitch + first + std::int64_t{tile} * Steps + i;
      copy_granule<4>(raw_BC(stage, 2) + 4 * i, reinterpret_cast<const char*>(flag),
                      i < steps ? 4 : 0);
    }
  }

  // ---- prepare ----------------------------------------------------------------------------------

  // This thread's pair of channels at step t of a raw operand.
  __device__ __forceinline__ Vec<T, 2> raw_pair(int stage, int which, int t) const {
    return load_vec<2>(reinterpret_cast<const T*>(raw(stage, which)) + t * Channels + 2 * pair());
  }

  __device__ __forceinline__ void prepare(int stage) const {
    float* to_delta = delta() + pair() * pitch;
    float* to_delta_x = delta_x() + pair() * pitch;
    const Vec<float, 2> bias = load_vec<2>(constants() + Channels + 2 * pair());
#pragma unroll 1
    for (int q = first_quad(); q < quads; q += quads_at_once()) {
      Four d[2], u[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> dt = raw_pair(stage, 1, 4 * q + i), x = raw_pair(stage, 0, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          d[c].at[i] = softplus(__fadd_rn(to_float(dt.at[c]), bias.at[c]));
          u[c].at[i] = __fmul_rn(d[c].at[i], to_float(x.at[c]));
        }
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        store_four(to_delta + c * half * pitch + 4 * q, d[c]);
        store_four(to_delta_x + c * half * pitch + 4 * q, u[c]);
      }
    }
    prepare_states(stage);
    if (op.reset != nullptr && threadIdx.x < 32) {
      const auto* flags = reinterpret_cast<const std::int32_t*>(raw_BC(stage, 2));
      const int i = thread();
      const unsigned mask = __ballot_sync(0xffffffffu, i < Steps && flags[i] != 0);
      if (i == 0) *resets() = mask;
    }
  }

  // B and C, contiguous in raw memory, two states and four steps at a time.
  __device__ __forceinline__ void prepare_states(int stage) const {
    const int row = cut.row_bytes_BC / element;
    const int pairs = cut.padded_states / 2;
    const int shift = 31 - __clz(pairs);
    const T* table = reinterpret_cast<const T*>(raw_BC(stage, 0));
#pragma unroll 1
    for (int i = thread(); i < 2 * quads << shift; i += threads()) {
      const int n = 2 * (i & (pairs - 1));
      const int q = (i >> shift) & (quads - 1);
      const int which = (i >> shift) / quads;
      const T* from = table + (which * Steps + 4 * q) * row + n;
      Four v[2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Vec<T, 2> two = load_vec<2>(from + j * row);
        v[0].at[j] = to_float(two.at[0]);
        v[1].at[j] = to_float(two.at[1]);
      }
      float* to_states = (which == 0 ? B() : C()) + n * pitch + n / States * 4 + 4 * q;
      store_four(to_states, v[0]);
      store_four(to_states + pitch, v[1]);
    }
  }

  // ---- finish -----------------------------------------------------------------------------------

  __device__ __forceinline__ void finish(int tile, int stage) const {
    const int c = channel + 2 * pair();
    if (c >= op.channels) return;
    const bool both = c + 1 < op.channels;
    const int steps = steps_of(tile);
    const float* from = parts() + pair() * cut.part_channel;
    T* y = reinterpret_cast<T*>(cursor(2).at) + 2 * pair() + 4 * first_quad() * op.y.step_pitch;
#pragma unroll 1
    for (int q = first_quad(); q < quads; q += quads_at_once()) {
      Four sum[2];
      sum[0] = tree_sum<FewLanes>(from + 4 * q, cut.part_lane, cut.lanes);
      sum[1] = tree_sum<FewLanes>(from + half * cut.part_channel + 4 * q, cut.part_lane, cut.lanes);
      gate(stage, q, sum);
      if (4 * q + 4 <= steps && cut.paired_y && both) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          store_vec(y + i * op.y.step_pitch,
                    Vec<T, 2>{{from_float<T>(sum[0].at[i]), from_float<T>(sum[1].at[i])}});
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (4 * q + i >= steps) break;
          y[i * op.y.step_pitch] = from_float<T>(sum[0].at[i]);
          if (both) y[i * op.y.step_pitch + 1] = from_float<T>(sum[1].at[i]);
        }
      }
      y += 4 * quads_at_once() * op.y.step_pitch;
    }
  }

  // y = (sum + D x) silu(z), of two channels and four steps.
  __device__ __forceinline__ void gate(int stage, int q, Four (&y)[2]) const {
    if (op.D != nullptr) {
      const Vec<float, 2> D = load_vec<2>(constants() + 2 * pair());
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> x = raw_pair(stage, 0, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          y[c].at[i] = __fmaf_rn(D.at[c], to_float(x.at[c]), y[c].at[i]);
        }
      }
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vec<T, 2> z = raw_pair(stage, 2, 4 * q + i);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          y[c].at[i] = __fmul_rn(y[c].at[i], silu<T>(to_float(z.at[c])));
        }
      }
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
