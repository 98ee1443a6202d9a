// A walk through time: a thread block takes all of it, or a leg (see scan_relay.cuh), for some
// channels of one batch row.
//
// `Lanes` neighbouring threads share a channel and hold `States` states each, in registers. Memory
// and the functions of one element (softplus, gate) know nothing of states: there the same lanes
// take one step each, of a group of `Lanes` steps:
//
//   lane j   reads x, dt, z of step j; works out delta = softplus(dt + bias) and delta x
//   all      for every step: delta and delta x by shuffle from its lane, B and C from shared
//            memory, h = exp(delta A) h + delta x B, and this lane's part of sum(C h)
//   lane j   gets the sum for step j, adds D x, multiplies by silu(z), leaves y
//
// Time comes in tiles through shared memory, copied a tile ahead without registers (cp.async); B
// and C a tile earlier, because they are wanted as f32 and turned a tile ahead. y leaves through
// the place of x.
#pragma once

#include <algorithm>

#include "kernels/gpu/ptx.cuh"
#include "kernels/scan/scan_copy.cuh"
#include "kernels/scan/scan_math.cuh"
#include "kernels/scan/scan_operands.cuh"
#include "kernels/scan/scan_relay.cuh"

namespace mamba::cuda {

constexpr int walk_threads = 128;  // of a block

// What lies in shared memory. Rows of channels are padded so that the steps that one warp reads
// together lie in different banks.
template <class T, int States, int Lanes>
struct WalkMemory {
  static constexpr int channels = walk_threads / Lanes;  // of a block
  static constexpr int padded = States * Lanes;          // states of a channel
  static constexpr int size = static_cast<int>(sizeof(T));
  static constexpr int steps = size == 2 && padded <= 32 ? 32 : 16;  // of a tile
  static constexpr int pad = std::max(32 / Lanes, 16 / size);
  static constexpr int row = channels + pad;  // elements
  T x[2][steps][row], dt[2][steps][row], z[2][steps][row];
  T raw[2][2][steps][padded];  // B and C as they come
  float BC[2][steps][2][padded];
};

// Plain: D and z are there, neither resets nor the states of every step are, and rows of channels
// are wide (see are_wide).
template <class T, int States, int Lanes, bool Plain>
struct Walk {
  using Memory = WalkMemory<T, States, Lanes>;
  static constexpr int channels = Memory::channels, padded = Memory::padded;
  static constexpr int steps = Memory::steps, groups = steps / Lanes;  // of a tile
  static constexpr int prepared = std::min(groups, 2);  // at once: one fills the other's gaps
  static constexpr int at_once = std::min(Lanes, 4);    // steps whose sums are exchanged together

  const ScanOperands& op;
  const ScanLeg& leg;
  Memory& memory;
  std::int64_t b;
  StateRow<> rows;
  int block_channel;  // the block's first
  int column, lane;   // this thread's channel in the block, and its place among its lanes
  int channel;
  bool works;  // on a channel that exists
  float A[States], h[States];
  float bias, D;
  int left;  // steps from the present tile's first on

  __device__ __forceinline__ Walk(const ScanOperands& operands, const ScanLeg& l, Memory& m)
      : op(operands), leg(l), memory(m) {
    const int blocks = (op.channels + channels - 1) / channels;
    b = leg.group / blocks;
    rows = op.rows(b);
    block_channel = static_cast<int>(leg.group % blocks) * channels;
    column = static_cast<int>(threadIdx.x) / Lanes;
    lane = static_cast<int>(threadIdx.x) % Lanes;
    works = block_channel + column < op.channels;
    channel = works ? block_channel + column : op.channels - 1;
    bias = op.dt_bias != nullptr ? op.dt_bias[channel] : 0;
    D = op.D != nullptr ? op.D[channel] : 0;
    left = static_cast<int>(leg.end - leg.begin);
  }

  __device__ __forceinline__ int count() const { return op.d_state - lane * States; }

  __device__ __forceinline__ void load_A() {
    const float* A_log = op.A + channel * op.A_pitch + lane * States;
#pragma unroll
    for (int k = 0; k < States; ++k) A[k] = k < count() ? scaled_A(A_log[k]) : 0;
  }
  // From [channels, d_state]; null: zeros. Past the first-level cache, which does not see what
  // another block left.
  __device__ __forceinline__ void load_states(const float* from) {
#pragma unroll
    for (int k = 0; k < States; ++k) {
      const bool there = from != nullptr && k < count();
      h[k] = there ? __ldcg(from + std::int64_t{channel} * op.d_state + lane * States + k) : 0;
    }
  }
  __device__ __forceinline__ void store_states(float* to) const {
#pragma unroll
    for (int k = 0; k < States; ++k) {
      if (works && k < count()) to[std::int64_t{channel} * op.d_state + lane * States + k] = h[k];
    }
  }
  __device__ __forceinline__ const float* states_before(const ScanRelay& relay) const {
    if (!leg.first) return relay.states + op.state(b, 0);
    return op.initial != nullptr && rows.read >= 0 ? op.initial + op.state(rows.read, 0) : nullptr;
  }
  __device__ __forceinline__ void leave_states(const ScanRelay& relay) const {
    if (!leg.last) {
      store_states(relay.states + op.state(b, 0));
    } else if (op.final_state != nullptr && rows.write >= 0) {
      store_states(op.final_state + op.state(rows.write, 0));
    }
  }

  // The tile of an operand from `ahead` steps after the present one's first.
  __device__ __forceinline__ ScanTile channels_of(const ScanTrack& track, int ahead) const {
    return ScanTile::of<T>(track, b, leg.end - left + ahead, left - ahead, block_channel,
                           op.channels - block_channel);
  }
  // Begins to copy a tile's elements, or B and C.
  __device__ __forceinline__ void copy_elements(int stage, int ahead) {
    const auto copy = [&](const ScanTrack& track, T(&to)[steps][Memory::row]) {
      copy_tile<Plain, walk_threads, steps, channels>(channels_of(track, ahead), &to[0][0],
                                                      Memory::row);
    };
    copy(op.x, memory.x[stage]);
    copy(op.dt, memory.dt[stage]);
    if (Plain || op.z.data != nullptr) copy(op.z, memory.z[stage]);
  }
  __device__ __forceinline__ void copy_BC(int stage, int ahead) {
    const auto copy = [&](const ScanTrack& track, T(&to)[steps][padded]) {
      const auto tile =
          ScanTile::of<T>(track, b, leg.end - left + ahead, left - ahead, 0, op.d_state);
      copy_states_tile<walk_threads, steps, padded>(tile, &to[0][0], op.copy_bits);
    };
    copy(op.B, memory.raw[stage][0]);
    copy(op.C, memory.raw[stage][1]);
  }
  // B and C of a tile as f32, eight at a time.
  __device__ __forceinline__ void turn_BC(int stage) const {
    constexpr int eights = padded / 8;
    for (int i = static_cast<int>(threadIdx.x); i < 2 * steps * eights; i += walk_threads) {
      const int which = i / (steps * eights), t = i / eights % steps, n = i % eights * 8;
      const T* from = &memory.raw[stage][which][t][n];
      float* to = &memory.BC[stage][t][which][n];
      constexpr int in_piece = 16 / static_cast<int>(sizeof(T));
      float eight[8];
#pragma unroll
      for (int k = 0; k < 8; k += in_piece) {
        const auto piece = load_vec<in_piece>(from + k);
#pragma unroll
        for (int j = 0; j < in_piece; ++j) eight[k + j] = to_float(piece.at[j]);
      }
#pragma unroll
      for (int k = 0; k < 8; k += 4) {
        store_vec(to + k, Vec<float, 4>{eight[k], eight[k + 1], eight[k + 2], eight[k + 3]});
      }
    }
  }
  __device__ __forceinline__ void store_y(int stage, int ahead) {
    store_tile<Plain, walk_threads, steps, channels>(&memory.x[stage][0][0], Memory::row,
                                                     channels_of(op.y, ahead));
  }

  // One step of this lane's states, and its part of sum(C h): fours in order, then by a tree.
  template <int First, int Count>
  __device__ __forceinline__ float advance_states(float delta, float delta_x, const float* BC) {
    if constexpr (Count > 4) {
      const float low = advance_states<First, Count / 2>(delta, delta_x, BC);
      return __fadd_rn(low, advance_states<First + Count / 2, Count / 2>(delta, delta_x, BC));
    } else {
      const auto B = load_vec<Count>(BC + First), C = load_vec<Count>(BC + padded + First);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        float& state = h[First + i];
        state = advance(state, delta, A[First + i], delta_x, B.at[i]);
        sum = i == 0 ? __fmul_rn(C.at[i], state) : __fmaf_rn(C.at[i], state, sum);
      }
      return sum;
    }
  }

  // The parts of `Count` steps summed over the lanes of a channel; lane j is left with step
  // j % Count. Each exchange halves what is carried.
  __device__ __forceinline__ float exchange(float even, float odd, int apart) const {
    const bool second = (lane & apart) != 0;
    const float other = __shfl_xor_sync(all_lanes, second ? even : odd, apart);
    return __fadd_rn(second ? odd : even, other);
  }
  template <int Count>
  __device__ __forceinline__ float sum_over_lanes(const float (&part)[Count]) const {
    static_assert(Count == 2 || Count == 4);
    float mine = exchange(part[0], part[1], 1);
    if constexpr (Count == 4) mine = exchange(mine, exchange(part[2], part[3], 1), 2);
#pragma unroll
    for (int apart = Count; apart < Lanes; apart *= 2) {
      mine = __fadd_rn(mine, __shfl_xor_sync(all_lanes, mine, apart));
    }
    return mine;
  }

  // What this lane works out for its step of a group.
  struct Step {
    float delta, delta_x;
  };
  template <bool Short>
  __device__ __forceinline__ Step prepare(int stage, int t) const {
    Step step;
    step.delta = softplus(__fadd_rn(to_float(memory.dt[stage][t][column]), bias));
    if (Short && left <= t) step.delta = 0;
    step.delta_x = __fmul_rn(step.delta, to_float(memory.x[stage][t][column]));
    return step;
  }

  // A group of steps of the present tile, from `first` on.
  __device__ __forceinline__ void group(const Step& mine, int stage, int first) {
    const int t = first + lane;
    const std::int64_t at = leg.end - left;  // the tile's first step
    unsigned resets = 0;
    if constexpr (!Plain) {
      resets = __ballot_sync(
          all_lanes, op.reset != nullptr && t < left && op.reset[b * op.reset_pitch + at + t] != 0);
    }
    float sum = 0;
#pragma unroll
    for (int some = 0; some < Lanes; some += at_once) {
      float part[at_once];
#pragma unroll
      for (int j = 0; j < at_once; ++j) {
        const float delta = __shfl_sync(all_lanes, mine.delta, some + j, Lanes);
        const float delta_x = __shfl_sync(all_lanes, mine.delta_x, some + j, Lanes);
        if constexpr (!Plain) {
#pragma unroll
          for (float& state : h) state = (resets >> (some + j) & 1) != 0 ? 0 : state;
        }
        const int step = first + some + j;
        part[j] =
            advance_states<0, States>(delta, delta_x, &memory.BC[stage][step][0][lane * States]);
        if constexpr (!Plain) {
          if (op.step_states.data != nullptr && step < left) {
            store_states(op.step_states.out<float>(b, at + step));
          }
        }
      }
      const float whole = sum_over_lanes(part);
      sum = Lanes == at_once || lane / at_once * at_once == some ? whole : sum;
    }
    if (Plain || op.D != nullptr) sum = __fmaf_rn(D, to_float(memory.x[stage][t][column]), sum);
    if (Plain || op.z.data != nullptr) {
      sum = __fmul_rn(sum, silu_of_scan<T>(to_float(memory.z[stage][t][column])));
    }
    memory.x[stage][t][column] = from_float<T>(sum);
  }

  // The state before step `first` of the tile, for the gradient.
  __device__ __forceinline__ void leave_chunk(int first) const {
    if (first >= left) return;
    const std::int64_t row = b * op.chunks() + (leg.end - left + first) / scan_chunk;
    float* to = op.chunk_states + op.state(row, channel) + lane * States;
    if (works && op.d_state == padded) {
#pragma unroll
      for (int k = 0; k < States; k += 4) {
        store_vec(to + k, Vec<float, 4>{h[k], h[k + 1], h[k + 2], h[k + 3]});
      }
    } else {
      store_states(op.chunk_states + op.state(row, 0));
    }
  }

  // Short: time ends within the tile.
  template <bool Short>
  __device__ __forceinline__ void walk_tile(int stage) {
#pragma unroll 1
    for (int first = 0; first < steps; first += prepared * Lanes) {
      if (op.chunk_states != nullptr && first % scan_chunk == 0) leave_chunk(first);
      Step mine[prepared];
#pragma unroll
      for (int g = 0; g < prepared; ++g) {
        mine[g] = prepare<Short>(stage, first + g * Lanes + lane);
      }
#pragma unroll
      for (int g = 0; g < prepared; ++g) group(mine[g], stage, first + g * Lanes);
    }
  }

  __device__ __forceinline__ void run(const ScanRelay& relay) {
    copy_elements(0, 0);
    copy_BC(0, 0);
    load_A();
    relay.wait(leg);
    load_states(states_before(relay));
    wait_for_all_copies();
    __syncthreads();
    turn_BC(0);
    copy_BC(1, steps);
    int stage = 0;
    const int all = left;
    for (; left > 0; left -= steps, stage ^= 1) {
      // Everybody's copies and turns for this tile are there, and the tile before is done with.
      wait_for_all_copies();
      __syncthreads();
      if (left < all) store_y(stage ^ 1, -steps);
      if (left > steps) {
        copy_elements(stage ^ 1, steps);
        turn_BC(stage ^ 1);
        copy_BC(stage, 2 * steps);
      }
      left < steps ? walk_tile<true>(stage) : walk_tile<false>(stage);
    }
    leave_states(relay);
    __syncthreads();
    if (all > 0) store_y(stage ^ 1, -steps);
    relay.pass_on(leg);
  }

  // A batch row that is padding, or whose state row does not exist.
  __device__ void absent() {
    const float value = rows.bad ? __int_as_float(0x7fffffff) : 0;
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
    for (int k = 0; k < States; ++k) h[k] = value;
    for (std::int64_t t = leg.begin; t < leg.end; ++t) {
      if (works && t % Lanes == lane) op.y.out<T>(b, t)[channel] = from_float<T>(value);
      if (op.step_states.data != nullptr) store_states(op.step_states.out<float>(b, t));
    }
  }
};

}  // namespace mamba::cuda
