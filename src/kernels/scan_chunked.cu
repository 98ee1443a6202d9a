// Chunk-parallel in time: a ring of warps. Each lane takes one channel and a chunk of 16 steps, a
// warp `Channels` channels and 32 / Channels chunks that follow each other, the warps of a block
// the next chunks of the same channels, and round again. State by state, with a = exp(delta A) and
// b = delta x B of its 16 steps in registers, a lane goes
//
//   up      what its chunk does to a state before it: h -> P h + (h from zero). P, the product of
//           the decays, is one exponential: exp(A sum(delta))
//   across  the chunks of a warp are joined by shuffles (the pairs compose: Blelloch 1990, Martin &
//           Cundy 2018). The state before a warp's first chunk comes from the warp before it in the
//           ring, and the state after its last one goes to the next
//   down    from the state before its chunk: h = a h + b again, and y += C h
//
// So a step of a state costs one exponential, as in a sequential walk, and seven instructions
// instead of five; there is no second pass over memory and no barrier. A state passed on is eight
// bytes, the value and the number of the round that it belongs to: the reader looks until the
// number is right. A slot is written again only by a warp whose own state came round the whole
// ring, through the slot's reader, so it has been read. Each warp runs some states behind the one
// before it, and the chain through the ring is short against the work between.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/scan_copy.cuh"
#include "kernels/scan_launch.hpp"
#include "kernels/scan_math.cuh"
#include "kernels/scan_operands.cuh"

namespace mamba::cuda {

namespace {

constexpr unsigned all_lanes = 0xffffffffu;
constexpr int chunk = 16;           // steps of a lane
constexpr int states_at_once = 16;  // whose B and C a warp keeps in shared memory
constexpr int most_warps = 16;

// The state that one warp hands to the next.
struct Passed {
  float h;
  int round;
};
__device__ __forceinline__ void pass(Passed* to, Passed value) {  // both words at once
  asm volatile("{ .reg .b64 v; mov.b64 v, {%1, %2}; st.volatile.shared.b64 [%0], v; }" ::"r"(
                   shared_address(to)),
               "f"(value.h), "r"(value.round)
               : "memory");
}
__device__ __forceinline__ Passed look(const Passed* from) {
  Passed value;
  asm volatile("{ .reg .b64 v; ld.volatile.shared.b64 v, [%2]; mov.b64 {%0, %1}, v; }"
               : "=f"(value.h), "=r"(value.round)
               : "r"(shared_address(from))
               : "memory");
  return value;
}

// What lies in shared memory for one warp. Between chunks an empty row or four words, so that what
// the chunks of a warp read together lies in different banks.
template <class T, int Channels>
struct RingMemory {
  static constexpr int chunks = 32 / Channels, steps = chunks * chunk, rows = steps + chunks;
  static constexpr int line = chunks * (chunk + 4);
  T x[rows][Channels], dt[rows][Channels], z[rows][Channels];
  T raw[2][steps][states_at_once];  // B and C as they come
  float B[states_at_once][line], C[states_at_once][line];
};

template <class T, int Channels, bool Plain>
struct Ring {
  using Memory = RingMemory<T, Channels>;
  static constexpr int chunks = Memory::chunks, steps = Memory::steps;  // of a warp

  const ScanOperands& op;
  Memory* memory;            // this warp's
  Passed *from, *to;         // [d_state, Channels], at this lane's channel
  float* A;                  // [d_state, Channels], at this lane's channel: A log2(e)
  int warps, warp, lane, q;  // q: this lane's chunk among the warp's
  std::int64_t b;
  int block_channel, channel;
  bool works;  // on a channel that exists
  ScanRows rows;

  static int shared_bytes(int warps, int d_state) {
    return warps * static_cast<int>(sizeof(Memory)) +
           d_state * Channels *
               (warps * static_cast<int>(sizeof(Passed)) + static_cast<int>(sizeof(float)));
  }

  __device__ __forceinline__ Ring(const ScanOperands& operands, char* shared) : op(operands) {
    const int blocks = (op.channels + Channels - 1) / Channels;
    warps = static_cast<int>(blockDim.x) / 32;
    warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    q = static_cast<int>(threadIdx.x) % 32 / Channels;
    const int column = static_cast<int>(threadIdx.x) % Channels;
    b = blockIdx.x / blocks;
    block_channel = static_cast<int>(blockIdx.x % blocks) * Channels;
    works = block_channel + column < op.channels;
    channel = works ? block_channel + column : op.channels - 1;
    rows = op.rows(b);
    memory = reinterpret_cast<Memory*>(shared) + warp;
    auto* ring = reinterpret_cast<Passed*>(shared + warps * sizeof(Memory));
    const int slots = op.d_state * Channels;
    A = reinterpret_cast<float*>(ring + warps * slots) + column;
    ring += column;
    from = ring + warp * slots;
    to = ring + (warp + 1 == warps ? 0 : warp + 1) * slots;
  }

  // A; empty slots, and the initial state in those that the first warp reads first.
  __device__ __forceinline__ void begin() const {
    const float* A_log = op.A_log + channel * op.A_log_pitch;
    for (int n = warp * chunks + q; n < op.d_state; n += warps * chunks) {
      A[n * Channels] = scaled_A(A_log[n]);
    }
    const bool fresh = op.initial == nullptr || rows.read < 0;
    for (int n = q; n < op.d_state; n += chunks) {
      const bool first = warp == 0;
      const float h = first && !fresh ? op.initial[op.state(rows.read, channel) + n] : 0;
      pass(from + n * Channels, {h, first ? 0 : -1});
    }
  }
  // The final state waits where the warp after the last tile would read it.
  __device__ __forceinline__ void end() const {
    if (op.final_state == nullptr || rows.write < 0) return;
    const std::int64_t tiles = (op.time + steps - 1) / steps;
    if (tiles % warps != warp) return;
    const int round = static_cast<int>(tiles / warps);
    for (int n = q; n < op.d_state; n += chunks) {
      Passed last;
      do last = look(from + n * Channels);
      while (last.round != round);
      if (works) op.final_state[op.state(rows.write, channel) + n] = last.h;
    }
  }

  // Steps of the sequence in this warp's tile that begins at step `first`.
  __device__ __forceinline__ int steps_from(std::int64_t first) const {
    return static_cast<int>(max(min(op.time - first, std::int64_t{steps}), std::int64_t{0}));
  }
  __device__ __forceinline__ ScanTile channels_of(const ScanTrack& track,
                                                  std::int64_t first) const {
    return ScanTile::of<T>(track, b, first, steps_from(first), block_channel,
                           op.channels - block_channel);
  }
  // Begins to copy a tile, or B and C of some states from `n` on.
  __device__ __forceinline__ void copy_channels(const ScanTrack& track, std::int64_t first,
                                                T (&rows)[Memory::rows][Channels]) const {
    copy_tile<Plain, 32, steps, Channels, chunk>(channels_of(track, first), &rows[0][0], Channels);
  }
  __device__ __forceinline__ void copy_BC(std::int64_t first, int n) const {
    const auto copy = [&](const ScanTrack& track, T(&rows)[steps][states_at_once]) {
      copy_tile<Plain, 32, steps, states_at_once>(
          ScanTile::of<T>(track, b, first, steps_from(first), n, op.d_state - n), &rows[0][0],
          states_at_once);
    };
    copy(op.B, memory->raw[0]);
    copy(op.C, memory->raw[1]);
  }
  // B and C as f32 with time innermost: a lane takes eight states of a step.
  __device__ __forceinline__ void turn_BC() const {
#pragma unroll
    for (int i = 0; i < 4 * steps; i += 32) {
      const int which = i / (2 * steps), n = i / steps % 2 * 8;
      const int t = (i + lane) % steps, half = steps < 32 ? (i + lane) / steps % 2 * 8 : n;
      float* line = which == 0 ? &memory->B[half][0] : &memory->C[half][0];
      line += t + t / chunk * 4;
      constexpr int in_piece = 16 / static_cast<int>(sizeof(T));
#pragma unroll
      for (int k = 0; k < 8; k += in_piece) {
        const auto piece = load_vec<in_piece>(&memory->raw[which][t][half + k]);
#pragma unroll
        for (int j = 0; j < in_piece; ++j) line[(k + j) * Memory::line] = to_float(piece.at[j]);
      }
    }
  }

  // What a lane knows of its chunk.
  struct Steps {
    std::int64_t first;  // step
    int left;            // steps of the sequence from there on
    float delta[chunk], delta_x[chunk], y[chunk];
    float sum;        // of delta
    unsigned resets;  // a bit a step
    unsigned cuts;    // bit s: a reset among the last 2^s chunks of the warp, this one included
  };
  // This lane's column of its chunk.
  __device__ __forceinline__ T* mine(T (&rows)[Memory::rows][Channels]) const {
    return &rows[q * (chunk + 1)][0] + lane % Channels;
  }

  __device__ __forceinline__ void begin_steps(Steps& s) const {
    const T *x_mine = mine(memory->x), *dt_mine = mine(memory->dt);
    const float bias = op.dt_bias != nullptr ? op.dt_bias[channel] : 0;
    const float D = op.D != nullptr ? op.D[channel] : 0;
    s.sum = 0;
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      const float x_k = to_float(x_mine[k * Channels]);
      const float delta = softplus(__fadd_rn(to_float(dt_mine[k * Channels]), bias));
      s.delta[k] = k < s.left ? delta : 0;
      s.y[k] = Plain || op.D != nullptr ? __fmul_rn(D, x_k) : 0;
      s.delta_x[k] = __fmul_rn(s.delta[k], x_k);
      s.sum = __fadd_rn(s.sum, s.delta[k]);
    }
    if constexpr (!Plain) begin_resets(s);
  }
  __device__ __forceinline__ void begin_resets(Steps& s) const {
    s.resets = s.cuts = 0;
    if (op.reset == nullptr) return;
    for (int k = 0; k < chunk && k < s.left; ++k) {
      if (op.reset[b * op.reset_pitch + s.first + k] != 0) s.resets |= 1u << k;
    }
    const unsigned lanes = __ballot_sync(all_lanes, s.resets != 0);
    for (int stage = 0; 1 << stage <= chunks; ++stage) {
      for (int back = 0; back < 1 << stage && back <= q; ++back) {
        if ((lanes >> (lane - back * Channels) & 1) != 0) s.cuts |= 1u << stage;
      }
    }
  }

  // One state over the chunk. The arguments are where it lies in shared memory.
  __device__ __forceinline__ void one_state(const float* A_n, const Passed* slot, Passed* next_slot,
                                            const float* B_n, const float* C_n, int round, int n,
                                            Steps& s) const {
    const float A_now = *A_n;
    Passed before = look(slot);  // early: it is mostly there
    float a[chunk], u[chunk];
    float h = 0;
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto four = load_vec<4>(B_n + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[k + i] = decay(s.delta[k + i], A_now);
        u[k + i] = __fmul_rn(s.delta_x[k + i], four.at[i]);
        if (!Plain && (s.resets >> (k + i) & 1) != 0) h = 0;
        h = k + i == 0 ? u[0] : __fmaf_rn(a[k + i], h, u[k + i]);
      }
    }
    float P = decay(s.sum, A_now);
#pragma unroll
    for (int stage = 0; 1 << stage < chunks; ++stage) {
      const int apart = Channels << stage;
      const float P_before = __shfl_up_sync(all_lanes, P, apart);
      const float h_before = __shfl_up_sync(all_lanes, h, apart);
      if (lane >= apart && !(!Plain && (s.cuts >> stage & 1) != 0)) {
        h = __fmaf_rn(P, h_before, h);
        P = __fmul_rn(P, P_before);
      }
    }
    while (__any_sync(all_lanes, before.round != round)) before = look(slot);
    constexpr int all_cuts = chunks == 1 ? 0 : chunks == 2 ? 1 : 2;
    const bool from_zero = !Plain && (s.cuts >> all_cuts & 1) != 0;
    const float after = from_zero ? h : __fmaf_rn(P, before.h, h);
    if (q == chunks - 1) pass(next_slot, {after, warp + 1 == warps ? round + 1 : round});
    h = before.h;
    if constexpr (chunks > 1) {
      const float entering = __shfl_up_sync(all_lanes, after, Channels);
      if (q > 0) h = entering;
    }
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto four = load_vec<4>(C_n + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!Plain && (s.resets >> (k + i) & 1) != 0) h = 0;
        h = __fmaf_rn(a[k + i], h, u[k + i]);
        s.y[k + i] = __fmaf_rn(four.at[i], h, s.y[k + i]);
        if (!Plain && op.step_states.data != nullptr && works && k + i < s.left) {
          op.step_states.out<float>(b, s.first + k + i)[std::int64_t{channel} * op.d_state + n] = h;
        }
      }
    }
  }
  __device__ __forceinline__ void some_states(int n, int count, int round, Steps& s) const {
    const float* A_n = A + n * Channels;
    const Passed* slot = from + n * Channels;
    Passed* next_slot = to + n * Channels;
    const float* B_n = &memory->B[0][q * (chunk + 4)];
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      one_state(A_n, slot, next_slot, B_n, B_n + states_at_once * Memory::line, round, n + k, s);
      A_n += Channels;
      slot += Channels;
      next_slot += Channels;
      B_n += Memory::line;
    }
  }

  // y takes the place of z.
  __device__ __forceinline__ void end_steps(Steps& s) const {
    T* z_mine = mine(memory->z);
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      float result = s.y[k];
      if (Plain || op.z.data != nullptr) result = __fmul_rn(result, silu<T>(to_float(z_mine[k * Channels])));
      z_mine[k * Channels] = from_float<T>(result);
    }
  }

  __device__ __forceinline__ void all_of_time() const {
    std::int64_t first = std::int64_t{warp} * steps;
    copy_channels(op.x, first, memory->x);
    copy_channels(op.dt, first, memory->dt);
    copy_BC(first, 0);
#pragma unroll 1
    for (int round = 0; first < op.time; ++round) {
      Steps s;
      s.first = first + q * chunk;
      s.left = steps_from(first) - q * chunk;
      copies_wait();
      __syncwarp();
      begin_steps(s);
      __syncwarp();
      const std::int64_t next = first + std::int64_t{warps} * steps;
      if (Plain || op.z.data != nullptr) copy_channels(op.z, first, memory->z);
      copy_channels(op.x, next, memory->x);
      copy_channels(op.dt, next, memory->dt);
      for (int n = 0; n < op.d_state; n += states_at_once) {
        if (n > 0) copies_wait();
        __syncwarp();
        turn_BC();
        __syncwarp();
        const bool more = n + states_at_once < op.d_state;
        copy_BC(more ? first : next, more ? n + states_at_once : 0);
        some_states(n, min(states_at_once, op.d_state - n), round, s);
      }
      copies_wait();
      __syncwarp();
      end_steps(s);
      __syncwarp();
      store_tile<Plain, 32, steps, Channels, chunk>(&memory->z[0][0], Channels,
                                                    channels_of(op.y, first));
      __syncwarp();
      first = next;
    }
    copies_wait();
  }

  // A batch row that is padding, or whose state row does not exist.
  __device__ void absent() const {
    const float value = rows.bad ? __int_as_float(0x7fffffff) : 0;
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
    if (!works) return;
    for (std::int64_t t = warp * chunks + q; t < op.time; t += warps * chunks) {
      op.y.out<T>(b, t)[channel] = from_float<T>(value);
      if (op.step_states.data == nullptr) continue;
      float* states = op.step_states.out<float>(b, t) + std::int64_t{channel} * op.d_state;
      for (int n = 0; n < op.d_state; ++n) states[n] = value;
    }
  }
};

template <class T, int Channels, bool Plain>
__global__ void __launch_bounds__(32 * most_warps, 1)
    ring_kernel(const __grid_constant__ ScanOperands op) {
  extern __shared__ __align__(16) char scan_memory[];
  const Ring<T, Channels, Plain> ring(op, scan_memory);
  if (ring.rows.is_absent()) return ring.absent();
  ring.begin();
  __syncthreads();
  ring.all_of_time();
  ring.end();
}

template <class T, int Channels>
void launch(const SelectiveScan& op, Stream& stream, int warps) {
  const std::int64_t blocks = op.x.dim(0) * ((op.x.dim(2) + Channels - 1) / Channels);
  const int shared =
      Ring<T, Channels, true>::shared_bytes(warps, static_cast<int>(op.A_log.dim(1)));
  const auto kernel =
      is_plain(op) ? ring_kernel<T, Channels, true> : ring_kernel<T, Channels, false>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "selective_scan");
  kernel<<<static_cast<unsigned>(blocks), 32 * warps, shared, handle(stream)>>>(
      ScanOperands(op, stream));
  check(cudaGetLastError(), "selective_scan");
}

}  // namespace

void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    switch (geometry.channels) {
      case 8:
        return launch<T, 8>(op, stream, geometry.warps);
      case 16:
        return launch<T, 16>(op, stream, geometry.warps);
      default:
        return launch<T, 32>(op, stream, geometry.warps);
    }
  });
}

}  // namespace mamba::cuda
