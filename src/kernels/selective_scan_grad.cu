// The gradient of the selective scan: the ring of warps of scan_chunked.cu, against time. A lane
// takes one channel and a chunk of 16 steps, whose first state the forward run left. State by
// state, with a = exp(delta A) of its steps in registers:
//
//   forward   h = a h + delta x B through the chunk: a h[t - 1], C h for y, and g h for dC
//   up        what the chunk does to a gradient that comes from behind it: dh -> P dh + (from zero)
//   across    chunks of a warp by shuffles, warps by slots in shared memory, last to first
//   down      dh = C g + a dh from the gradient that comes from behind: dB, dA, and the sums over
//             states that dx and ddt are made of
//
// dB and dC are sums over channels. The lanes of a warp add theirs through shared memory, each
// block writes [batch, time, 2 d_state] for its channels, and a second kernel adds the blocks up in
// their order. dA_log, dD and ddt_bias are summed over time here and over the batch in the same
// way.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/column_sums.cuh"
#include "kernels/cuda.cuh"
#include "kernels/math.cuh"
#include "kernels/scan_operands.cuh"
#include "kernels/scan_ring.cuh"
#include "kernels/selective_scan.hpp"

namespace mamba::cuda {

namespace {

constexpr int chunk = scan_chunk;
constexpr int most_warps = 8;  // of a block, for the registers they need

struct GradOperands {
  std::int64_t batch, time;
  int channels, d_state, copy_bits;
  bool wide;                                     // see are_wide
  ScanTrack x, dt, B, C, z, dy, dx, ddt, dz, y;  // z and dz, and y may be absent
  const float* A_log;
  std::int64_t A_log_pitch;
  const float *D, *dt_bias;  // these and reset may be absent
  const std::int32_t* reset;
  std::int64_t reset_pitch;
  const float *chunk_states, *dfinal;  // dfinal and dinitial may be absent
  float* dinitial;
  float* dBC;   // [channel blocks, batch, time, 2, d_state]
  float* sums;  // [batch, channels, d_state + 2]: of dA, dD and ddt_bias

  explicit GradOperands(const SelectiveScanGrad& op)
      : batch(op.x.dim(0)),
        time(op.x.dim(1)),
        channels(static_cast<int>(op.x.dim(2))),
        d_state(static_cast<int>(op.A_log.dim(1))),
        copy_bits(copy_bits_of_states(op)),
        wide(are_wide({op.x, op.dt, op.z, op.dy, op.dx, op.ddt, op.dz, op.y})),
        x(op.x),
        dt(op.dt),
        B(op.B),
        C(op.C),
        z(op.z),
        dy(op.dy),
        dx(op.dx),
        ddt(op.ddt),
        dz(op.dz),
        y(op.y),
        A_log(op.A_log.data<float>()),
        A_log_pitch(op.A_log.row_pitch()),
        D(op.D ? op.D.data<float>() : nullptr),
        dt_bias(op.dt_bias ? op.dt_bias.data<float>() : nullptr),
        reset(op.reset ? op.reset.data<std::int32_t>() : nullptr),
        reset_pitch(op.reset ? op.reset.row_pitch() : 0),
        chunk_states(op.chunk_states.data<float>()),
        dfinal(op.dfinal_state ? op.dfinal_state.data<float>() : nullptr),
        dinitial(op.dinitial_state ? op.dinitial_state.data<float>() : nullptr) {}

  // Where the state of channel c of row `row` begins.
  __device__ __forceinline__ std::int64_t state(std::int64_t row, int c) const {
    return (row * channels + c) * d_state;
  }
};

// What lies in shared memory for one warp.
template <class T, int Channels>
struct GradMemory {
  static constexpr int chunks = 32 / Channels, steps = chunks * chunk, rows = steps + chunks;
  static constexpr int products = 36;  // of a lane: dB and dC of 16 steps, and four words
  T x[rows][Channels], dt[rows][Channels], z[rows][Channels], dy[rows][Channels];
  RingStates<T, steps> BC;
  RingResets<steps, true> resets;
  float product[32][products];
  float dBC[steps][2][ring_states];
};

template <class T, int Channels>
struct GradRing {
  using Memory = GradMemory<T, Channels>;
  static constexpr int chunks = Memory::chunks, steps = Memory::steps;  // of a warp

  const GradOperands& op;
  Memory* memory;     // this warp's
  Passed *from, *to;  // [d_state, Channels], at this lane's channel
  float* A;           // [d_state, Channels], at this lane's channel: A log2(e)
  float* dA;          // [d_state + 2, 32], at this lane: sums over its steps
  int warp, lane, q;  // q: this lane's chunk among the warp's
  int b, block_channel;

  static int shared_bytes(int warps, int d_state) {
    constexpr int size = static_cast<int>(sizeof(float));
    return warps * (static_cast<int>(sizeof(Memory)) + 32 * (d_state + 2) * size +
                    d_state * Channels * static_cast<int>(sizeof(Passed))) +
           d_state * Channels * size;
  }

  __device__ __forceinline__ GradRing(const GradOperands& operands, char* shared) : op(operands) {
    const int blocks = (op.channels + Channels - 1) / Channels;
    // A shuffle says that it is the warp's, so that what follows from it takes no vector registers.
    warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
    lane = static_cast<int>(threadIdx.x) % 32;
    q = lane / Channels;
    b = static_cast<int>(blockIdx.x / blocks);
    block_channel = static_cast<int>(blockIdx.x % blocks) * Channels;
    memory = reinterpret_cast<Memory*>(shared) + warp;
    auto* ring = reinterpret_cast<Passed*>(shared + warps() * sizeof(Memory));
    const int slots = op.d_state * Channels;
    A = reinterpret_cast<float*>(ring + warps() * slots);
    dA = A + slots + warp * 32 * (op.d_state + 2) + lane;
    A += lane % Channels;
    ring += lane % Channels;
    from = ring + warp * slots;
    to = ring + (warp + 1 == warps() ? 0 : warp + 1) * slots;
  }
  // Of the block.
  __device__ __forceinline__ static int warps() { return static_cast<int>(blockDim.x) / 32; }
  // This lane's channel, and whether there is one: if not, the last one's work is done again.
  __device__ __forceinline__ bool works() const {
    return block_channel + lane % Channels < op.channels;
  }
  __device__ __forceinline__ int channel() const {
    return min(block_channel + lane % Channels, op.channels - 1);
  }

  __device__ __forceinline__ void begin() const {
    const float* A_log = op.A_log + channel() * op.A_log_pitch;
    for (int n = warp * chunks + q; n < op.d_state; n += warps() * chunks) {
      A[n * Channels] = scaled_A(A_log[n]);
    }
    for (int n = 0; n < op.d_state + 2; ++n) dA[n * 32] = 0;
    for (int n = q; n < op.d_state; n += chunks) {
      const bool first = warp == 0;
      const float dh = first && op.dfinal != nullptr ? op.dfinal[op.state(b, channel()) + n] : 0;
      pass(from + n * Channels, {dh, first ? 0 : -1});
    }
    memory->resets.clear();
    __syncthreads();
  }

  // Sums over the block's warps and chunks, and the gradient of the initial state, which waits
  // where the warp after the first steps would read it.
  __device__ __forceinline__ void end() const {
    const int tiles = static_cast<int>((op.time + steps - 1) / steps);
    if (op.dinitial != nullptr && tiles % warps() == warp) {
      for (int n = q; n < op.d_state; n += chunks) {
        const Passed* slot = from + n * Channels;
        Passed last;
        do last = look(slot);
        while (last.round != tiles / warps());
        if (works()) op.dinitial[op.state(b, channel()) + n] = last.h;
      }
    }
    __syncthreads();
    const int rows = op.d_state + 2;
    const float* all = dA - lane - warp * 32 * rows;
    for (int i = static_cast<int>(threadIdx.x); i < rows * Channels; i += 32 * warps()) {
      const int n = i % rows, c = i / rows;
      if (block_channel + c >= op.channels) break;
      float sum = 0;
      for (int w = 0; w < warps(); ++w) {
        for (int k = 0; k < chunks; ++k) sum += all[(w * rows + n) * 32 + k * Channels + c];
      }
      if (n < op.d_state) sum *= ln2 * (A - lane % Channels)[n * Channels + c];
      op.sums[(std::int64_t{b} * op.channels + block_channel + c) * rows + n] = sum;
    }
  }

  // Steps of the sequence in a tile.
  __device__ __forceinline__ int steps_of(int tile) const {
    const std::int64_t left = op.time - std::int64_t{tile} * steps;
    return static_cast<int>(max(min(left, std::int64_t{steps}), std::int64_t{0}));
  }
  __device__ __forceinline__ ScanTile channels_of(const ScanTrack& track, int tile) const {
    return ScanTile::of<T>(track, b, std::int64_t{tile} * steps, steps_of(tile), block_channel,
                           op.channels - block_channel);
  }
  __device__ __forceinline__ void copy_channels(const ScanTrack& track, int tile,
                                                T (&rows)[Memory::rows][Channels]) const {
    const ScanTile from = channels_of(track, tile);
    op.wide ? copy_tile<true, 32, steps, Channels, chunk>(from, &rows[0][0], Channels)
            : copy_tile<false, 32, steps, Channels, chunk>(from, &rows[0][0], Channels);
  }
  __device__ __forceinline__ void store_channels(T (&rows)[Memory::rows][Channels],
                                                 const ScanTrack& track, int tile) const {
    const ScanTile to = channels_of(track, tile);
    op.wide ? store_tile<true, 32, steps, Channels, chunk>(&rows[0][0], Channels, to)
            : store_tile<false, 32, steps, Channels, chunk>(&rows[0][0], Channels, to);
  }
  __device__ __forceinline__ void copy_BC(int tile, int n) const {
    const auto tile_of = [&](const ScanTrack& track) {
      return ScanTile::of<T>(track, b, std::int64_t{tile} * steps, steps_of(tile), n,
                             op.d_state - n);
    };
    memory->BC.copy(tile_of(op.B), tile_of(op.C), op.copy_bits);
  }

  // Steps of the sequence from the first of this lane's chunk on.
  __device__ __forceinline__ int left_in(int tile) const { return steps_of(tile) - q * chunk; }
  // What a lane knows of its chunk.
  struct Steps {
    float delta[chunk], delta_x[chunk], g[chunk];
    float y[chunk], B_dh[chunk], A_dh[chunk];  // sums over states
    float sum;                                 // of delta
  };
  // This lane's column of its chunk.
  __device__ __forceinline__ T* mine(T (&rows)[Memory::rows][Channels]) const {
    return &rows[q * (chunk + 1)][0] + lane % Channels;
  }
  __device__ __forceinline__ float bias() const {
    return op.dt_bias != nullptr ? op.dt_bias[channel()] : 0;
  }

  __device__ __forceinline__ void begin_steps(int tile, Steps& s) const {
    const T *x = mine(memory->x), *dt = mine(memory->dt), *z = mine(memory->z);
    const T* dy = mine(memory->dy);
    const int left = left_in(tile);
    s.sum = 0;
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      const float delta = softplus(__fadd_rn(to_float(dt[k * Channels]), bias()));
      s.delta[k] = k < left ? delta : 0;
      s.delta_x[k] = __fmul_rn(s.delta[k], to_float(x[k * Channels]));
      s.sum = __fadd_rn(s.sum, s.delta[k]);
      s.g[k] = to_float(dy[k * Channels]);
      s.y[k] = s.B_dh[k] = s.A_dh[k] = 0;
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int k = 0; k < chunk; ++k) {
        s.g[k] = __fmul_rn(s.g[k], silu<T>(to_float(z[k * Channels])));
      }
    }
    if (op.reset != nullptr) memory->resets.find();
  }
  // Looked up again wherever it is wanted, for there is no register left.
  template <bool Careful>
  __device__ __forceinline__ unsigned cuts_of() const {
    return Careful ? *const_cast<const volatile unsigned*>(&memory->resets.cuts[q]) : 0;
  }

  // State n over the chunk, `at` being its place among those in shared memory; h is the state
  // before the chunk. Careful: there are resets in the tile.
  template <bool Careful>
  __device__ __forceinline__ void one_state(int n, int at, int round, float h, Steps& s) const {
    const float A_n = A[n * Channels];
    const Passed* slot = from + n * Channels;
    const Passed seen = look(slot);  // early: it is mostly there
    const float* B = &memory->BC.turned[0][at][q * (chunk + 4)];
    const float* C = &memory->BC.turned[1][at][q * (chunk + 4)];
    float* product = memory->product[lane];
    unsigned cuts = cuts_of<Careful>();
    float a[chunk], e[chunk];  // the decays, and a h[t - 1]
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto B4 = load_vec<4>(B + k), C4 = load_vec<4>(C + k);
      Vec<float, 4> g_h;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[k + i] = decay(s.delta[k + i], A_n);
        e[k + i] = __fmul_rn(a[k + i], h);
        if (Careful && (cuts >> (k + i) & 1) != 0) e[k + i] = 0;
        h = __fmaf_rn(s.delta_x[k + i], B4.at[i], e[k + i]);
        s.y[k + i] = __fmaf_rn(C4.at[i], h, s.y[k + i]);
        g_h.at[i] = __fmul_rn(s.g[k + i], h);
      }
      store_vec(product + chunk + k, g_h);
    }
    cuts = cuts_of<Careful>();
    float P = decay(s.sum, A_n), carry = 0;
#pragma unroll
    for (int k = chunk - 4; k >= 0; k -= 4) {
      const auto C4 = load_vec<4>(C + k);
#pragma unroll
      for (int i = 3; i >= 0; --i) {
        carry = __fmul_rn(a[k + i], __fmaf_rn(C4.at[i], s.g[k + i], carry));
        if (Careful && (cuts >> (k + i) & 1) != 0) carry = 0;
      }
    }
#pragma unroll
    for (int stage = 0; 1 << stage < chunks; ++stage) {
      const bool cut = Careful && (cuts >> (chunk + stage) & 1) != 0;
      join_neighbour<Careful, true>(Channels << stage, cut, P, carry);
    }
    const float behind = wait_for(slot, seen, round);
    constexpr int all_cuts = chunks == 1 ? 0 : 1;
    const bool from_zero = Careful && (cuts >> (chunk + all_cuts) & 1) != 0;
    const float left_over = from_zero ? carry : __fmaf_rn(P, behind, carry);
    if (q == 0) pass(to + n * Channels, {left_over, round + (warp + 1 == warps() ? 1 : 0)});
    carry = behind;
    if constexpr (chunks > 1) {
      const float entering = __shfl_down_sync(all_lanes, left_over, Channels);
      if (q < chunks - 1) carry = entering;
    }
    cuts = cuts_of<Careful>();
    float sum = 0;
#pragma unroll
    for (int k = chunk - 4; k >= 0; k -= 4) {
      const auto B4 = load_vec<4>(B + k), C4 = load_vec<4>(C + k);
      Vec<float, 4> x_dh;
#pragma unroll
      for (int i = 3; i >= 0; --i) {
        const float dh = __fmaf_rn(C4.at[i], s.g[k + i], carry);
        const float dexponent = __fmul_rn(dh, e[k + i]);
        x_dh.at[i] = __fmul_rn(s.delta_x[k + i], dh);
        s.B_dh[k + i] = __fmaf_rn(B4.at[i], dh, s.B_dh[k + i]);
        s.A_dh[k + i] = __fmaf_rn(A_n, dexponent, s.A_dh[k + i]);
        sum = __fmaf_rn(s.delta[k + i], dexponent, sum);
        carry = __fmul_rn(a[k + i], dh);
        if (Careful && (cuts >> (k + i) & 1) != 0) carry = 0;
      }
      store_vec(product + k, x_dh);
    }
    dA[n * 32] += sum;
    __syncwarp();
    add_products(at);
    __syncwarp();
  }

  // dBC[.., at]: the products of the lanes of each chunk, added. A lane takes four columns of eight
  // lanes, then exchanges with the lanes that have the other lanes of its chunk, each time one half
  // of its columns.
  __device__ __forceinline__ void add_products(int at) const {
    const int column = lane % 8 * 4, first = lane / 8 * 8;
    float sum[4] = {};
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const auto four = load_vec<4>(&memory->product[first + r][column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += four.at[i];
    }
    const bool odd = (lane & 8) != 0, upper = (lane & 16) != 0;
    const auto exchange = [](bool second, float low, float high, int apart) {
      const float other = __shfl_xor_sync(all_lanes, second ? low : high, apart);
      return (second ? high : low) + other;
    };
    const auto put = [&](int c, int of_chunk, float value) {
      const int t = of_chunk * chunk + (column + c) % chunk;
      memory->dBC[t][(column + c) / chunk][at] = value;
    };
    const float even_sum = exchange(odd, sum[0], sum[2], 8);
    const float odd_sum = exchange(odd, sum[1], sum[3], 8);
    const int c = odd ? 2 : 0;
    if constexpr (Channels == 16) {
      put(c, lane / 16, even_sum);
      put(c + 1, lane / 16, odd_sum);
    } else {
      put(upper ? c + 1 : c, 0, exchange(upper, even_sum, odd_sum, 16));
    }
  }

  template <bool Careful>
  __device__ __forceinline__ void some_states(int tile, int n, int count, int round,
                                              Steps& s) const {
    const bool there = left_in(tile) > 0;
    const std::int64_t chunks_in_time = (op.time + chunk - 1) / chunk;
    const float* begins = op.chunk_states + n;
    if (there) begins += op.state(b * chunks_in_time + tile * chunks + q, channel());
    float next = there ? *begins : 0;
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      const float h = next;
      ++begins;
      if (there && k + 1 < count) next = *begins;
      one_state<Careful>(n + k, k, round, h, s);
    }
  }
  __device__ __forceinline__ void store_dBC(int tile, int n, int count) const {
    const int left = steps_of(tile);
    const auto block = static_cast<unsigned>(block_channel) / Channels;  // a sign would be spilled
    const std::int64_t row = (block * op.batch + b) * op.time + tile * steps;
    for (int i = lane; i < left * 2 * ring_states; i += 32) {
      const int k = i % ring_states, which = i / ring_states % 2, t = i / (2 * ring_states);
      if (k < count) {
        op.dBC[((row + t) * 2 + which) * op.d_state + n + k] = memory->dBC[t][which][k];
      }
    }
  }

  // What belongs to a channel and step; it takes the place of the operands in shared memory.
  __device__ __forceinline__ void end_steps(int tile, Steps& s) const {
    T *x = mine(memory->x), *dt = mine(memory->dt), *z = mine(memory->z), *dy = mine(memory->dy);
    const float D = op.D != nullptr ? op.D[channel()] : 0;
    const int left = left_in(tile);
    float dD = 0, dbias = 0;
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      const int at = k * Channels;
      const float x_k = to_float(x[at]);
      const float ddelta = __fmaf_rn(x_k, s.B_dh[k], ln2 * s.A_dh[k]);
      const float ddt = ddelta * sigmoid<T>(__fadd_rn(to_float(dt[at]), bias()));
      float dx = s.delta[k] * s.B_dh[k];
      if (op.D != nullptr) {
        dx = __fmaf_rn(D, s.g[k], dx);
        s.y[k] = __fmaf_rn(D, x_k, s.y[k]);
      }
      if (k < left) {
        dD = __fmaf_rn(s.g[k], x_k, dD);
        dbias += ddt;
      }
      x[at] = from_float<T>(dx);
      dt[at] = from_float<T>(ddt);
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int k = 0; k < chunk; ++k) {
        const int at = k * Channels;
        const float z_k = to_float(z[at]);
        z[at] = from_float<T>(s.y[k] * silu_grad<T>(z_k, to_float(dy[at])));
        s.y[k] = __fmul_rn(s.y[k], silu<T>(z_k));
      }
    }
#pragma unroll
    for (int k = 0; k < chunk; ++k) dy[k * Channels] = from_float<T>(s.y[k]);
    dA[op.d_state * 32] += dD;
    dA[(op.d_state + 1) * 32] += dbias;
  }

  __device__ __forceinline__ void run() const {
    begin();
    const int tiles = static_cast<int>((op.time + steps - 1) / steps);
    int round = 0;
#pragma unroll 1
    for (int tile = tiles - 1 - warp; tile >= 0; tile -= warps(), ++round) {
      copy_channels(op.x, tile, memory->x);
      copy_channels(op.dt, tile, memory->dt);
      copy_channels(op.dy, tile, memory->dy);
      if (op.z.data != nullptr) copy_channels(op.z, tile, memory->z);
      if (op.reset != nullptr) {
        memory->resets.copy(op.reset + b * op.reset_pitch + std::int64_t{tile} * steps,
                            steps_of(tile));
      }
      copy_BC(tile, 0);
      Steps s;
      copies_wait();
      __syncwarp();
      begin_steps(tile, s);
      for (int n = 0; n < op.d_state; n += ring_states) {
        if (n > 0) {
          copy_BC(tile, n);
          copies_wait();
          __syncwarp();
        }
        memory->BC.turn();
        __syncwarp();
        const int count = min(ring_states, op.d_state - n);
        memory->resets.any() ? some_states<true>(tile, n, count, round, s)
                             : some_states<false>(tile, n, count, round, s);
        store_dBC(tile, n, count);
        __syncwarp();
      }
      end_steps(tile, s);
      __syncwarp();
      store_channels(memory->x, op.dx, tile);
      store_channels(memory->dt, op.ddt, tile);
      if (op.z.data != nullptr) store_channels(memory->z, op.dz, tile);
      if (op.y.data != nullptr) store_channels(memory->dy, op.y, tile);
      __syncwarp();
    }
    end();
  }
};

template <class T, int Channels>
__global__ void __launch_bounds__(32 * most_warps, 1)
    grad_ring_kernel(const __grid_constant__ GradOperands op) {
  extern __shared__ __align__(16) char scan_memory[];
  GradRing<T, Channels>(op, scan_memory).run();
}

// dB and dC: the sums over blocks of channels, in the storage type.
template <class T>
struct PutStates {
  ScanTrack dB, dC;
  std::int64_t time;
  int d_state;

  __device__ void operator()(std::int64_t i, float sum) const {
    const auto n = static_cast<int>(i % d_state);
    const std::int64_t row = i / (2 * d_state), b = row / time;
    const std::int64_t t = row - b * time;
    T* to = i / d_state % 2 == 0 ? dB.out<T>(b, t) : dC.out<T>(b, t);
    to[n] = from_float<T>(sum);
  }
};
template <class Put>
__global__ void __launch_bounds__(256)
    add_blocks_kernel(const float* partials, int blocks, std::int64_t columns, const Put put) {
  const std::int64_t column = std::int64_t{blockIdx.x} * 256 + threadIdx.x;
  if (column >= columns) return;
  float sum = 0;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) sum += partials[block * columns + column];
  put(column, sum);
}

// dA_log, dD and ddt_bias from [batch, channels, d_state + 2].
struct PutChannels {
  float *dA_log, *dD, *ddt_bias;
  int d_state;
  bool accumulate;

  __device__ void operator()(std::int64_t i, float sum) const {
    const std::int64_t c = i / (d_state + 2);
    const auto n = static_cast<int>(i - c * (d_state + 2));
    float* to = n == d_state + 1 ? ddt_bias : n == d_state ? dD : dA_log;
    if (to == nullptr) return;
    to += n < d_state ? c * d_state + n : c;
    *to = accumulate ? *to + sum : sum;
  }
};

template <class Put>
void add_blocks(const float* partials, std::int64_t blocks, std::int64_t columns, const Put& put,
                Stream& stream) {
  if (columns == 0) return;
  add_blocks_kernel<<<static_cast<unsigned>(divide_up(columns, 256)), 256, 0, handle(stream)>>>(
      partials, static_cast<int>(blocks), columns, put);
  check(cudaGetLastError(), "selective_scan_grad");
}

template <class T, int Channels>
void launch(const SelectiveScanGrad& op, Stream& stream, int warps) {
  using Block = GradRing<T, Channels>;
  GradOperands operands(op);
  const std::int64_t across = divide_up(op.x.dim(2), Channels);
  Scratch scratch(stream);
  operands.dBC =
      scratch.take({across, op.x.dim(0) * op.x.dim(1), 2 * op.B.dim(2)}, DType::f32).data<float>();
  operands.sums =
      scratch.take({op.x.dim(0), op.x.dim(2), op.A_log.dim(1) + 2}, DType::f32).data<float>();
  constexpr int most_shared = 222 * 1024;
  while (warps > 1 && Block::shared_bytes(warps, operands.d_state) > most_shared) --warps;
  const int shared = Block::shared_bytes(warps, operands.d_state);
  const auto kernel = grad_ring_kernel<T, Channels>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "selective_scan_grad");
  if (op.x.dim(0) * across > 0) {
    kernel<<<static_cast<unsigned>(op.x.dim(0) * across), 32 * warps, shared, handle(stream)>>>(
        operands);
  }
  check(cudaGetLastError(), "selective_scan_grad");
  add_blocks(operands.dBC, across, op.x.dim(0) * op.x.dim(1) * 2 * op.B.dim(2),
             PutStates<T>{ScanTrack(op.dB), ScanTrack(op.dC), op.x.dim(1), operands.d_state},
             stream);
  const auto data = [](const TensorView& view) { return view ? view.data<float>() : nullptr; };
  add_blocks(
      operands.sums, op.x.dim(0), op.x.dim(2) * (op.A_log.dim(1) + 2),
      PutChannels{data(op.dA_log), data(op.dD), data(op.ddt_bias), operands.d_state, op.accumulate},
      stream);
}

}  // namespace

void run_scan_grad(const SelectiveScanGrad& op, Stream& stream, const ScanGeometry& geometry) {
  if (op.chunk_steps != scan_chunk) {
    throw ArgumentError("selective_scan_grad", "chunk_steps",
                        "scan_chunk_steps() of the device, " + std::to_string(scan_chunk),
                        std::to_string(op.chunk_steps));
  }
  const OnDevice current(stream.device(), "selective_scan_grad");
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    geometry.channels == 32 ? launch<T, 32>(op, stream, geometry.warps)
                            : launch<T, 16>(op, stream, geometry.warps);
  });
}

}  // namespace mamba::cuda
