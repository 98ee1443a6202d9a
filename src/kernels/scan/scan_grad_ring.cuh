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
// Where a warp has one chunk of each channel, the way down alone says what the chunk hands on. Each
// warp is then a state behind the warp that it gets dh from. With at least as many states as warps,
// no warp waits long.
//
// dB and dC are sums over channels: the lanes of a warp add theirs through shared memory, and each
// block writes [batch, chunks, d_state, 2, 16 steps] for its channels. dA_log, dD and ddt_bias are
// summed over time here, dA in the place of dA_log where A is given.
#pragma once

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/math.cuh"
#include "kernels/scan/ring_warp.cuh"
#include "kernels/scan/scan_grad_operands.cuh"

namespace mamba::cuda {

template <class T, int Channels>
struct GradMemory : RingTile<Channels> {
  using RingTile<Channels>::rows, RingTile<Channels>::steps;
  static constexpr int products = 36;  // of a lane: dB and dC of 16 steps, and four words between
  T x[rows][Channels], dt[rows][Channels], z[rows][Channels], dy[rows][Channels];
  RingStates<T, steps, float[32][products]> BC;  // later: the products of the lanes
  RingResets<steps, true> resets;
};

// Grows: states may (detail::may_grow).
template <class T, int Channels, bool Grows>
struct GradRing : RingWarp<T, Channels, ScanGradOperands, GradMemory<T, Channels>> {
  using Warp = RingWarp<T, Channels, ScanGradOperands, GradMemory<T, Channels>>;
  static constexpr int chunk = scan_chunk;
  static_assert(!Grows || RingTile<Channels>::chunks == 1, "a product of decays may be infinite");
  using Warp::A, Warp::b, Warp::block_channel, Warp::chunks, Warp::from, Warp::lane, Warp::memory,
      Warp::op, Warp::q, Warp::steps, Warp::to, Warp::warp;
  using Warp::bias, Warp::channel, Warp::copy_BC, Warp::copy_channels, Warp::copy_resets,
      Warp::left_in, Warp::mine, Warp::steps_of, Warp::store_channels, Warp::tiles, Warp::warps,
      Warp::works;

  // Of a block, as the registers allow: 168 for one chunk in 16 bits, 255 otherwise. For 8.0
  // and 8.6 the compiler spills with 168.
  static constexpr int most_warps(int capability) {
    return chunks == 1 && sizeof(T) == 2 && capability >= sm_90 ? 12 : 8;
  }

  float* dA;  // [d_state + 2, 32], at this lane: sums over its steps

  static int shared_bytes(int warps, int d_state) {
    return Warp::ring_bytes(warps, d_state) +
           warps * 32 * (d_state + 2) * static_cast<int>(sizeof(float));
  }

  __device__ __forceinline__ GradRing(const ScanGradOperands& operands, char* shared)
      : Warp(operands, shared), dA(Warp::rest() + warp * 32 * (op.d_state + 2) + lane) {}

  __device__ __forceinline__ void begin() const {
    Warp::template load_A<Grows>();
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
    if (op.dinitial != nullptr && Warp::is_after_the_last()) {
      for (int n = q; n < op.d_state; n += chunks) {
        const float dh = Warp::passed(n, Warp::rounds());
        if (works()) op.dinitial[op.state(b, channel()) + n] = dh;
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
      const bool of_log = n < op.d_state && (!Grows || op.form.A_is_log);
      if (of_log) sum *= ln2 * (A - lane % Channels)[n * Channels + c];
      op.sums[(std::int64_t{b} * op.channels + block_channel + c) * rows + n] = sum;
    }
  }

  // What a lane knows of its chunk.
  struct Steps {
    float delta[chunk], delta_x[chunk], g[chunk];
    float y[chunk], B_dh[chunk], A_dh[chunk];  // sums over states
    float sum;                                 // of delta
  };
  __device__ __forceinline__ void begin_steps(int tile, Steps& s) const {
    const T *x = mine(memory->x), *dt = mine(memory->dt), *z = mine(memory->z);
    const T* dy = mine(memory->dy);
    const int left = left_in(tile);
    s.sum = 0;
#pragma unroll
    for (int k = 0; k < chunk; ++k) {
      const float delta =
          op.form.template delta<Grows>(__fadd_rn(to_float(dt[k * Channels]), bias()));
      s.delta[k] = k < left ? delta : 0;
      s.delta_x[k] = __fmul_rn(s.delta[k], to_float(x[k * Channels]));
      s.sum = __fadd_rn(s.sum, s.delta[k]);
      s.g[k] = to_float(dy[k * Channels]);
      s.y[k] = s.B_dh[k] = s.A_dh[k] = 0;
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int k = 0; k < chunk; ++k) {
        s.g[k] = __fmul_rn(s.g[k], silu_of_scan<T>(to_float(z[k * Channels])));
      }
    }
    if (op.reset != nullptr) memory->resets.find();
  }
  // State n over the chunk, `at` being its place among those in shared memory; h is the state
  // before the chunk. Careful: there are resets in the tile.
  template <bool Careful>
  __device__ __forceinline__ void one_state(int tile, int n, int at, int round, float h, float* dBC,
                                            Steps& s) const {
    const float A_n = A[n * Channels];
    const Passed* slot = from + n * Channels;
    const float* B = &memory->BC.turned[0][at][q * (chunk + 4)];
    const float* C = &memory->BC.turned[1][at][q * (chunk + 4)];
    float* product = memory->BC.later[lane];
    float a[chunk], e[chunk];  // the decays, and a h[t - 1]
#pragma unroll
    for (int k = 0; k < chunk; k += 4) {
      const auto B4 = load_vec<4>(B + k), C4 = load_vec<4>(C + k);
      const unsigned cuts = Warp::template cuts<Careful>() >> k;
      Vec<float, 4> g_h;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[k + i] = decay(s.delta[k + i], A_n);
        e[k + i] = __fmul_rn(a[k + i], h);
        if (Careful && (cuts >> i & 1) != 0) e[k + i] = 0;
        h = __fmaf_rn(s.delta_x[k + i], B4.at[i], e[k + i]);
        s.y[k + i] = __fmaf_rn(C4.at[i], h, s.y[k + i]);
        g_h.at[i] = __fmul_rn(s.g[k + i], h);
      }
      store_vec(product + chunk + k, g_h);
    }
    float carry;  // the gradient that comes from behind the chunk
    if constexpr (chunks == 1) {
      carry = wait_for(slot, look(slot), round);
    } else {
      carry = hand_over<Careful>(n, C, a, slot, round, s);
    }
    float sum = 0;
#pragma unroll
    for (int k = chunk - 4; k >= 0; k -= 4) {
      const auto B4 = load_vec<4>(B + k), C4 = load_vec<4>(C + k);
      const unsigned cuts = Warp::template cuts<Careful>() >> k;
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
        if (Careful && (cuts >> i & 1) != 0) carry = 0;
      }
      store_vec(product + k, x_dh);
    }
    if constexpr (chunks == 1) pass(to + n * Channels, {carry, Warp::round_after(round)});
    dA[n * 32] += sum;
    __syncwarp();
    add_products(tile, dBC);
    __syncwarp();
  }

  // Hands on what the warp's chunks make of the gradient that comes from behind them, before that
  // is needed, and gives this lane the one from behind its chunk.
  template <bool Careful>
  __device__ __forceinline__ float hand_over(int n, const float* C, const float (&a)[chunk],
                                             const Passed* slot, int round, const Steps& s) const {
    const Passed seen = look(slot);  // early: it is mostly there
    const unsigned cuts = Warp::template cuts<Careful>();
    float P = decay(s.sum, A[n * Channels]), carry = 0;
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
    const bool from_zero = Careful && (cuts >> (chunk + 1) & 1) != 0;  // of two chunks
    const float left_over = from_zero ? carry : __fmaf_rn(P, behind, carry);
    if (q == 0) pass(to + n * Channels, {left_over, Warp::round_after(round)});
    const float entering = __shfl_down_sync(all_lanes, left_over, Channels);
    return q < chunks - 1 ? entering : behind;
  }

  // dB and dC of state n: the products of the lanes of each chunk, added. A lane takes four columns
  // of eight lanes, then exchanges with the lanes that have the other lanes of its chunk, each time
  // one half of its columns.
  __device__ __forceinline__ void add_products(int tile, float* dBC) const {
    const int column = lane % 8 * 4, first = lane / 8 * 8;
    float sum[4] = {};
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const auto four = load_vec<4>(&memory->BC.later[first + r][column]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += four.at[i];
    }
    const bool odd = (lane & 8) != 0, upper = (lane & 16) != 0;
    const auto exchange = [](bool second, float low, float high, int apart) {
      const float other = __shfl_xor_sync(all_lanes, second ? low : high, apart);
      return (second ? high : low) + other;
    };
    const float even_sum = exchange(odd, sum[0], sum[2], 8);
    const float odd_sum = exchange(odd, sum[1], sum[3], 8);
    const int c = column + (odd ? 2 : 0);
    if constexpr (Channels == 16) {
      if (left_in(tile) <= 0) return;  // lanes 16 to 31 have the second chunk, here as everywhere
      dBC[c] = even_sum;
      dBC[c + 1] = odd_sum;
    } else {
      dBC[upper ? c + 1 : c] = exchange(upper, even_sum, odd_sum, 16);
    }
  }
  // Where dB and dC of this lane's chunk and state n go: [2, 16 steps].
  __device__ __forceinline__ float* dBC_of(int tile, int n) const {
    const auto block = static_cast<unsigned>(block_channel) / Channels;  // a sign would be spilled
    const std::int64_t row = (block * op.batch + b) * op.chunks() + tile * chunks + q;
    return op.dBC + (row * op.d_state + n) * (2 * chunk);
  }

  template <bool Careful>
  __device__ __forceinline__ void some_states(int tile, int n, int count, int round,
                                              Steps& s) const {
    const bool there = chunks == 1 || left_in(tile) > 0;
    const float* begins = op.chunk_states + n;
    // The channel is made anew: kept since begin_steps, it would be spilled.
    const int c = min(block_channel + lane_id() % Channels, op.channels - 1);
    if (there) begins += op.state(b * op.chunks() + tile * chunks + q, c);
    float next = there ? *begins : 0;
    float* dBC = dBC_of(tile, n);
#pragma unroll 1
    for (int k = 0; k < count; ++k) {
      const float h = next;
      ++begins;
      if (there && k + 1 < count) next = *begins;
      one_state<Careful>(tile, n + k, k, round, h, dBC, s);
      dBC += 2 * chunk;
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
      float ddt = ddelta;
      if (!Grows || op.form.softplus) ddt *= sigmoid<T>(__fadd_rn(to_float(dt[at]), bias()));
      float dx = s.delta[k] * s.B_dh[k];
      if (op.D != nullptr) {
        dx = __fmaf_rn(D, s.g[k], dx);
        s.y[k] = __fmaf_rn(D, x_k, s.y[k]);
      }
      dD = __fmaf_rn(k < left ? s.g[k] : 0, x_k, dD);
      dbias += k < left ? ddt : 0;
      x[at] = from_float<T>(dx);
      dt[at] = from_float<T>(ddt);
    }
    if (op.z.data != nullptr) {
#pragma unroll
      for (int k = 0; k < chunk; ++k) {
        const int at = k * Channels;
        const float z_k = to_float(z[at]);
        z[at] = from_float<T>(s.y[k] * silu_grad<T>(z_k, to_float(dy[at])));
        s.y[k] = __fmul_rn(s.y[k], silu_of_scan<T>(z_k));
      }
    }
#pragma unroll
    for (int k = 0; k < chunk; ++k) dy[k * Channels] = from_float<T>(s.y[k]);
    dA[op.d_state * 32] += dD;
    dA[(op.d_state + 1) * 32] += dbias;
  }

  __device__ __forceinline__ void run() const {
    begin();
    int round = 0;
#pragma unroll 1
    for (int tile = tiles() - 1 - warp; tile >= 0; tile -= warps(), ++round) {
      copy_channels(op.x, tile, memory->x);
      copy_channels(op.dt, tile, memory->dt);
      copy_channels(op.dy, tile, memory->dy);
      if (op.z.data != nullptr) copy_channels(op.z, tile, memory->z);
      copy_resets(tile);
      copy_BC(tile, 0);
      Steps s;
      wait_for_all_copies();
      __syncwarp();
      begin_steps(tile, s);
      int n = 0;
      do {
        if (n > 0) {
          copy_BC(tile, n);
          wait_for_all_copies();
          __syncwarp();
        }
        memory->BC.turn();
        __syncwarp();
        const int count = min(ring_states, op.d_state - n);
        memory->resets.any() ? some_states<true>(tile, n, count, round, s)
                             : some_states<false>(tile, n, count, round, s);
        n += ring_states;
      } while (n < op.d_state);
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

}  // namespace mamba::cuda
