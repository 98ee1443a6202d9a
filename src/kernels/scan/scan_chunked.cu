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
//
// Where a warp has one chunk of each channel (32 of them), nothing is to be joined. Its lanes wait
// for the state before their chunk, take only the way down and hand on the state after it: five
// instructions again, and no registers for a and b. The warps take turns then, each a state behind
// the one before it, so they wait for each other where there are fewer states than warps.
//
// Resets are rare: only a tile that has one does the work that they ask for.
#include <algorithm>
#include <type_traits>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/scan/ring_warp.cuh"
#include "kernels/scan/scan_launch.hpp"

namespace mamba::cuda {

namespace {

constexpr int chunk = scan_chunk;  // steps of a lane

template <class T, int Channels>
struct RingMemory : RingTile<Channels> {
  using RingTile<Channels>::rows, RingTile<Channels>::steps;
  T x[rows][Channels], dt[rows][Channels], z[rows][Channels];
  RingStates<T, steps> BC;
  RingResets<steps, false> resets;
};
// The states before the chunks of a warp, on their way to chunk_states.
using RingBegins = float[32][ring_states + 1];

// Leaves: states go to chunk_states or step_states. Grows: states may (detail::may_grow).
template <class T, int Channels, bool Leaves, bool Grows>
struct Ring : RingWarp<T, Channels, ScanOperands, RingMemory<T, Channels>> {
  using Warp = RingWarp<T, Channels, ScanOperands, RingMemory<T, Channels>>;
  using Warp::A, Warp::b, Warp::block_channel, Warp::chunks, Warp::from, Warp::lane, Warp::memory,
      Warp::op, Warp::q, Warp::steps, Warp::to, Warp::warp;
  using Warp::channel, Warp::copy_BC, Warp::copy_channels, Warp::copy_resets, Warp::left_in,
      Warp::mine, Warp::steps_of, Warp::tiles, Warp::warps, Warp::works;
  static constexpr int line = RingStates<T, steps>::line;
  static_assert(!Grows || chunks == 1, "a product of decays may be infinite");

  static int shared_bytes(int warps, int d_state) {
    const int begins = Leaves ? static_cast<int>(sizeof(RingBegins)) : 0;
    return Warp::ring_bytes(warps, d_state) + warps * begins;
  }
  __device__ __forceinline__ RingBegins* left_states() const {
    return reinterpret_cast<RingBegins*>(Warp::rest()) + warp;
  }

  __device__ __forceinline__ Ring(const ScanOperands& operands, char* shared)
      : Warp(operands, shared) {}

  // A; empty slots, and the initial state in those that the first warp reads first.
  __device__ __forceinline__ void begin(const StateRow<>& rows) const {
    Warp::template load_A<Grows>();
    const bool fresh = op.initial == nullptr || rows.read < 0;
    for (int n = q; n < op.d_state; n += chunks) {
      const bool first = warp == 0;
      const float h = first && !fresh ? op.initial[op.state(rows.read, channel()) + n] : 0;
      pass(from + n * Channels, {h, first ? 0 : -1});
    }
    memory->resets.clear();
    __syncthreads();
  }
  // The final state waits where the warp after the last tile would read it.
  __device__ __forceinline__ void end() const {
    const std::int64_t row = op.rows(b).write;
    if (op.final_state == nullptr || row < 0) return;
    if (!Warp::is_after_the_last()) return;
    for (int n = q; n < op.d_state; n += chunks) {
      const float h = Warp::passed(n, Warp::rounds());
      if (works()) op.final_state[op.state(row, channel()) + n] = h;
    }
  }

  // Begins to copy what belongs to the steps of a tile and is gone when begin_steps has read it.
  __device__ __forceinline__ void copy_steps(int tile) const {
    copy_channels(op.x, tile, memory->x);
    copy_channels(op.dt, tile, memory->dt);
    copy_resets(tile);
  }
  // The first step of this lane's chunk of a tile.
  __device__ __forceinline__ std::int64_t first_step(int tile) const {
    return std::int64_t{tile} * steps + q * chunk;
  }
  // What a lane knows of its chunk.
  struct Steps {
    float delta[chunk], delta_x[chunk], y[chunk];
    float sum;  // of delta
  };
  __device__ __forceinline__ void begin_steps(int tile, Steps& s) const {
    const T *x_mine = mine(memory->x), *dt_mine = mine(memory->dt);
    const float bias = Warp::bias();
    const float D = op.D != nullptr ? op.D[channel()] : 0;
    const int left = left_in(tile);
    s.sum = 0;
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      const float x_k = to_float(x_mine[k * Channels]);
      const float v = __fadd_rn(to_float(dt_mine[k * Channels]), bias);
      const float delta = op.form.template delta<Grows>(v);
      s.delta[k] = k < left ? delta : 0;
      s.y[k] = op.D != nullptr ? __fmul_rn(D, x_k) : 0;
      s.delta_x[k] = __fmul_rn(s.delta[k], x_k);
      s.sum = __fadd_rn(s.sum, s.delta[k]);
    }
    if (op.reset != nullptr) memory->resets.find();
  }

  // Where a state lies in shared memory.
  struct Place {
    const float *A, *B;
    const Passed* slot;
    Passed* next_slot;

    __device__ __forceinline__ Place on(int states) const {
      return {A + states * Channels, B + states * line, slot + states * Channels,
              next_slot + states * Channels};
    }
  };

  // State n over the chunk. Careful: there are resets in the tile, or step_states.
  template <bool Careful>
  __device__ __forceinline__ void one_state(const Place& at, int tile, int round, int n,
                                            Steps& s) const {
    const float A_n = *at.A;
    const Passed seen = look(at.slot);  // early: it is mostly there
    float a[chunk], u[chunk];
    unsigned cuts = Warp::template cuts<Careful>();
    float h = 0;
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto B4 = load_vec<4>(at.B + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[k + i] = decay(s.delta[k + i], A_n);
        u[k + i] = __fmul_rn(s.delta_x[k + i], B4.at[i]);
        if (Careful && (cuts >> (k + i) & 1) != 0) h = 0;
        h = k + i == 0 ? u[0] : __fmaf_rn(a[k + i], h, u[k + i]);
      }
    }
    cuts = Warp::template cuts<Careful>();
    float P = decay(s.sum, A_n);
#pragma unroll
    for (int stage = 0; 1 << stage < chunks; ++stage) {
      const bool cut = Careful && (cuts >> (chunk + stage) & 1) != 0;
      join_neighbour<Careful, false>(Channels << stage, cut, P, h);
    }
    const float before = wait_for(at.slot, seen, round);
    constexpr int all_cuts = chunks == 2 ? 1 : 2;
    const bool from_zero = Careful && (cuts >> (chunk + all_cuts) & 1) != 0;
    const float after = from_zero ? h : __fmaf_rn(P, before, h);
    if (q == chunks - 1) pass(at.next_slot, {after, Warp::round_after(round)});
    const float entering = __shfl_up_sync(all_lanes, after, Channels);
    h = q > 0 ? entering : before;
    const float begins = h;
    cuts = Warp::template cuts<Careful>();
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto C4 = load_vec<4>(at.B + ring_states * line + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (Careful && (cuts >> (k + i) & 1) != 0) h = 0;
        h = __fmaf_rn(a[k + i], h, u[k + i]);
        s.y[k + i] = __fmaf_rn(C4.at[i], h, s.y[k + i]);
        if constexpr (Careful) leave_step(tile, n, k + i, h);
      }
    }
    if constexpr (Leaves) (*left_states())[lane][n % ring_states] = begins;
  }
  // The same where a warp has one chunk of each channel: down alone, from the state before it.
  template <bool Careful>
  __device__ __forceinline__ void one_state_in_turn(const Place& at, int tile, int round, int n,
                                                    Steps& s) const {
    const float A_n = *at.A;
    const unsigned cuts = Warp::template cuts<Careful>();
    float h = wait_for(at.slot, look(at.slot), round);
    if constexpr (Leaves) (*left_states())[lane][n % ring_states] = h;
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto B4 = load_vec<4>(at.B + k), C4 = load_vec<4>(at.B + ring_states * line + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (Careful && (cuts >> (k + i) & 1) != 0) h = 0;
        h = advance(h, s.delta[k + i], A_n, s.delta_x[k + i], B4.at[i]);
        s.y[k + i] = __fmaf_rn(C4.at[i], h, s.y[k + i]);
        if constexpr (Careful) leave_step(tile, n, k + i, h);
      }
    }
    pass(at.next_slot, {h, Warp::round_after(round)});
  }
  // State n after step k of this lane's chunk, where step_states want it.
  __device__ __forceinline__ void leave_step(int tile, int n, int k, float h) const {
    if (!Leaves || op.step_states.data == nullptr || !works() || k >= left_in(tile)) return;
    op.step_states.template out<float>(
        b, first_step(tile) + k)[std::int64_t{channel()} * op.d_state + n] = h;
  }
  // `count` states from n on, of every lane: its neighbours' are next to them in memory.
  __device__ __forceinline__ void leave_chunks(int tile, int n, int count) const {
    if (op.chunk_states == nullptr) return;
    __syncwarp();
    constexpr int together = 32 / ring_states;  // lanes whose states the warp takes at once
    const int k = lane % ring_states, first = lane / ring_states;
    const std::int64_t row = b * op.chunks() + std::int64_t{tile} * chunks;
    float* to_states = op.chunk_states + op.state(row, block_channel + first) + n + k;
    const bool wanted = k < count;
    const int steps_here = steps_of(tile), channels_here = op.channels - block_channel - first;
#pragma unroll
    for (int of = 0; of < 32; of += together) {
      const int c = of % Channels, of_chunk = of / Channels;
      if (wanted && c < channels_here && of_chunk * chunk < steps_here) {
        to_states[(std::int64_t{of_chunk} * op.channels + c) * op.d_state] =
            (*left_states())[of + first][k];
      }
    }
    __syncwarp();
  }
  template <bool Careful>
  __device__ __forceinline__ void some_states(int tile, int n, int count, int round,
                                              Steps& s) const {
    Place at{A + n * Channels, &memory->BC.turned[0][0][q * (chunk + 4)], from + n * Channels,
             to + n * Channels};
#pragma unroll 1
    for (int k = 0; k < count; ++k, at = at.on(1)) {
      if constexpr (chunks == 1) {
        one_state_in_turn<Careful>(at, tile, round, n + k, s);
      } else {
        one_state<Careful>(at, tile, round, n + k, s);
      }
    }
  }

  // y takes the place of z.
  __device__ __forceinline__ void end_steps(Steps& s) const {
    T* z_mine = mine(memory->z);
    if (op.z.data != nullptr) {
#pragma unroll
      for (int k = 0; k < chunk; ++k) {
        s.y[k] = __fmul_rn(s.y[k], silu_of_scan<T>(to_float(z_mine[k * Channels])));
      }
    }
#pragma unroll
    for (int k = 0; k < chunk; ++k) z_mine[k * Channels] = from_float<T>(s.y[k]);
  }

  __device__ __forceinline__ void run(const StateRow<>& rows) const {
    copy_steps(warp);
    copy_BC(warp, 0);
    begin(rows);
    int round = 0;
#pragma unroll 1
    for (int tile = warp; tile < tiles(); tile += warps(), ++round) {
      Steps s;
      wait_for_all_copies();
      __syncwarp();
      begin_steps(tile, s);
      __syncwarp();
      if (op.z.data != nullptr) copy_channels(op.z, tile, memory->z);
      copy_steps(tile + warps());
      for (int n = 0; n < op.d_state; n += ring_states) {
        if (n > 0) wait_for_all_copies();
        __syncwarp();
        memory->BC.turn();
        __syncwarp();
        const bool more = n + ring_states < op.d_state;
        copy_BC(more ? tile : tile + warps(), more ? n + ring_states : 0);
        const int count = min(ring_states, op.d_state - n);
        memory->resets.any() || (Leaves && op.step_states.data != nullptr)
            ? some_states<true>(tile, n, count, round, s)
            : some_states<false>(tile, n, count, round, s);
        if constexpr (Leaves) leave_chunks(tile, n, count);
      }
      wait_for_all_copies();
      __syncwarp();
      end_steps(s);
      __syncwarp();
      Warp::store_channels(memory->z, op.y, tile);
      __syncwarp();
    }
    wait_for_all_copies();
    end();
  }

  // A batch row that is padding, or whose state row does not exist.
  __device__ void absent(const StateRow<>& rows) const {
    const float value = rows.bad ? __int_as_float(0x7fffffff) : 0;
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
    if (!works()) return;
    for (std::int64_t t = warp * chunks + q; t < op.time; t += warps() * chunks) {
      op.y.template out<T>(b, t)[channel()] = from_float<T>(value);
      if (op.step_states.data == nullptr) continue;
      float* states =
          op.step_states.template out<float>(b, t) + std::int64_t{channel()} * op.d_state;
      for (int n = 0; n < op.d_state; ++n) states[n] = value;
    }
  }
};

// Of a block, for the registers they need.
template <int Channels, bool Leaves>
constexpr int warps_of = (Channels < 32 && Leaves) ? 12 : 16;

template <class T, int Channels, bool Leaves, bool Grows>
__global__ void __launch_bounds__(32 * warps_of<Channels, Leaves>, 1)
    ring_kernel(const __grid_constant__ ScanOperands op) {
  extern __shared__ __align__(16) char scan_memory[];
  const Ring<T, Channels, Leaves, Grows> ring(op, scan_memory);
  const StateRow<> rows = op.rows(ring.b);
  rows.is_absent() ? ring.absent(rows) : ring.run(rows);
}

template <class T, int Channels, bool Leaves, bool Grows>
void run_ring(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  const std::int64_t blocks = op.x.dim(0) * ((op.x.dim(2) + Channels - 1) / Channels);
  const auto d_state = static_cast<int>(detail::d_state_of(op));
  int warps = std::clamp(geometry.warps, 1, warps_of<Channels, Leaves>);
  const auto bytes = [&] { return Ring<T, Channels, Leaves, Grows>::shared_bytes(warps, d_state); };
  // All that a block can have: above 196 KiB of an H200 the first-level cache loses the same.
  const int most = shared_memory(stream.device(), "selective_scan");
  while (warps > 1 && bytes() > most) --warps;
  launch(ring_kernel<T, Channels, Leaves, Grows>, static_cast<unsigned>(blocks), 32 * warps,
         static_cast<std::size_t>(bytes()), stream, "selective_scan", ScanOperands(op, stream));
}

// f(type, channels, leaves, grows) with the kernel's parameters.
template <class F>
void with_ring(const SelectiveScan& op, int channels, const F& f) {
  const auto with_channels = [&](auto type, auto leaves) {
    const std::false_type grows;
    if (detail::may_grow(op)) {
      return f(type, std::integral_constant<int, 32>(), leaves, std::true_type());
    }
    switch (channels) {
      case 8:
        return f(type, std::integral_constant<int, 8>(), leaves, grows);
      case 16:
        return f(type, std::integral_constant<int, 16>(), leaves, grows);
      default:
        return f(type, std::integral_constant<int, 32>(), leaves, grows);
    }
  };
  detail::visit(op.x.dtype(), [&](auto type) {
    op.chunk_states || op.step_states ? with_channels(type, std::true_type())
                                      : with_channels(type, std::false_type());
  });
}

}  // namespace

void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  with_ring(op, geometry.channels, [&](auto type, auto channels, auto leaves, auto grows) {
    using T = typename decltype(type)::type;
    run_ring<T, channels(), leaves(), grows()>(op, stream, geometry);
  });
}

RingNeeds ring_needs(const SelectiveScan& op, int channels, const Limits&) {
  RingNeeds needs{};
  with_ring(op, channels, [&](auto type, auto width, auto leaves, auto grows) {
    using T = typename decltype(type)::type;
    needs = RingNeeds::of<Ring<T, width(), leaves(), grows()>>(
        warps_of<width(), leaves()>, static_cast<int>(detail::d_state_of(op)));
  });
  return needs;
}

}  // namespace mamba::cuda
