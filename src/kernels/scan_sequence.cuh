// The recurrence, and the kernel that walks time with it: see scan_block.cuh.
#pragma once

#include "kernels/scan_helper.cuh"

namespace mamba::cuda {

// One thread's states of one channel, and their walk through a tile.
template <class Block>
struct ScanStates {
  static constexpr int States = Block::states, Steps = Block::steps, pitch = Block::pitch;

  const Block& block;
  int row, lane;  // of the channel in shared memory; within the channel
  int channel;
  int count;      // of states that exist
  float A[States], h[States];
  float delta_sum = 0;  // over the chunk, for summaries; -1 once there was a reset

  __device__ explicit ScanStates(const Block& b) : block(b) {
    row = Block::thread() / block.cut.lanes;
    lane = Block::thread() & (block.cut.lanes - 1);
    channel = block.channel + (row < Block::half ? 2 * row : 2 * (row - Block::half) + 1);
    count = channel < block.op.channels ? block.op.d_state - lane * States : 0;
    const float* A_log = block.op.A_log + channel * block.op.A_log_pitch + lane * States;
#pragma unroll
    for (int k = 0; k < States; ++k) {
      A[k] = k < count ? scaled_A(A_log[k]) : 0;
      h[k] = 0;
    }
  }

  __device__ void load(const float* channels) {
    const float* from = channels + channel * std::int64_t{block.op.d_state} + lane * States;
#pragma unroll
    for (int k = 0; k < States; ++k) h[k] = k < count ? from[k] : 0;
  }
  __device__ void store(float* channels) const {
    float* to = channels + channel * std::int64_t{block.op.d_state} + lane * States;
#pragma unroll
    for (int k = 0; k < States; ++k) {
      if (k < count) to[k] = h[k];
    }
  }

  // One state through four steps; C h is added to `sum`, or begins it. Careful: of four steps only
  // `steps` are there, bits of `resets` mark those that begin a new sequence, and the state after each is
  // stored if `out` is not null.
  struct Care {
    unsigned resets = 0;
    int steps = 4;
    float* out = nullptr;
  };
  template <bool Careful>
  __device__ __forceinline__ void four_steps(int k, const Four& delta, const Four& delta_x,
                                             const float* B, const float* C, bool begins, Four& sum,
                                             const Care& care) {
    const Four b = load_four(B + k * pitch), c = load_four(C + k * pitch);
    float* out = care.out + k;  // only with few states a thread: see scan_walk
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (Careful && (care.resets >> i & 1) != 0) h[k] = 0;
      const float next = advance(h[k], delta.at[i], A[k], delta_x.at[i], b.at[i]);
      if (!Careful || i < care.steps) h[k] = next;
      sum.at[i] = begins ? __fmul_rn(c.at[i], h[k]) : __fmaf_rn(c.at[i], h[k], sum.at[i]);
      if constexpr (Careful && Block::step_states) {
        if (care.out != nullptr && i < care.steps && k < count) *out = h[k];
        out += block.op.step_states.step_pitch;
      }
    }
  }

  // States k and k + 1, then by the tree.
  template <int Count, bool Careful>
  __device__ __forceinline__ Four states_from(int k, const Four& delta, const Four& delta_x,
                                              const float* B, const float* C, const Care& care) {
    if constexpr (Count == 2) {
      Four sum;
      four_steps<Careful>(k, delta, delta_x, B, C, true, sum, care);
      four_steps<Careful>(k + 1, delta, delta_x, B, C, false, sum, care);
      return sum;
    } else {
      const Four low = states_from<Count / 2, Careful>(k, delta, delta_x, B, C, care);
      return low + states_from<Count / 2, Careful>(k + Count / 2, delta, delta_x, B, C, care);
    }
  }

  template <bool Careful, bool Summary>
  __device__ __forceinline__ void recur(int tile, int buffer, int steps) {
    const int my_row = recomputed(row), my_lane = recomputed(lane);
    const float* delta = block.delta(buffer) + my_row * pitch;
    const float* delta_x = block.delta_x(buffer) + my_row * pitch;
    const float* B = block.B(buffer) + my_lane * Block::lane_pitch;
    const float* C = block.C(buffer) + my_lane * Block::lane_pitch;
    float* part = block.parts(buffer) + my_row * block.cut.part_channel +
                  my_lane * block.cut.part_lane;
    Care care;
    if (Careful) {
      if (block.op.reset != nullptr) care.resets = *block.resets(buffer);
      if (Block::step_states && !Summary && block.op.step_states.data != nullptr) {
        care.out = block.op.step_states.template out<float>(
                       block.b, block.first + std::int64_t{tile} * Steps) +
                   recomputed(channel) * std::int64_t{block.op.d_state} + my_lane * States;
      }
    }
#pragma unroll 1
    for (int t = 0; t < Steps; t += 4) {
      if (Careful) care.steps = steps - t;
      const Four d = load_four(delta + t), u = load_four(delta_x + t);
      const Four sum = states_from<States, Careful>(0, d, u, B + t, C + t, care);
      if constexpr (Summary) {
        add_deltas<Careful>(d, care);
      } else {
        __syncwarp();  // the parts may take the place of what the other lane of a channel reads
        store_four(part + t, sum);
      }
      if (Careful) {
        care.resets >>= 4;
        if (Block::step_states && care.out != nullptr) care.out += 4 * block.op.step_states.step_pitch;
      }
    }
  }

  template <bool Careful>
  __device__ __forceinline__ void add_deltas(const Four& delta, const Care& care) {
    const float four = (delta.at[0] + delta.at[1]) + (delta.at[2] + delta.at[3]);
    delta_sum = delta_sum < 0 || (Careful && (care.resets & 15u) != 0) ? -1 : delta_sum + four;
  }

  template <bool Summary>
  __device__ __forceinline__ void walk(int tile, int buffer) {
    const int steps = block.steps_of(tile);
    const bool resets = block.op.reset != nullptr && *block.resets(buffer) != 0;
    if (resets || steps < Steps ||
        (Block::step_states && !Summary && block.op.step_states.data != nullptr)) {
      recur<true, Summary>(tile, buffer, steps);
    } else {
      recur<false, Summary>(tile, buffer, steps);
    }
  }

  // The state before this block's first step. In the second pass it follows from what the chunks before
  // have left: entries[0] is the state after chunk 0, entries[j] what chunk j ends with from zeros.
  __device__ void begin(const ScanRows& rows) {
    const std::int64_t size = std::int64_t{block.op.channels} * block.op.d_state;
    if (block.chunk == 0) {
      if (block.op.initial != nullptr && rows.read >= 0) load(block.op.initial + rows.read * size);
      return;
    }
    if (block.cut.first_chunk == 0) return;
    const std::int64_t slot = block.b * (block.cut.chunks - 1);
    load(block.cut.entries + slot * size);
    for (int j = 1; j < block.chunk; ++j) {
      float before[States];
#pragma unroll
      for (int k = 0; k < States; ++k) before[k] = h[k];
      load(block.cut.entries + (slot + j) * size);
      const float sum = count > 0 ? block.cut.sums[(slot + j) * block.op.channels + channel] : 0;
#pragma unroll
      for (int k = 0; k < States; ++k) {
        if (!(sum < 0)) h[k] = __fmaf_rn(decay(sum, A[k]), before[k], h[k]);
      }
    }
  }

  __device__ void end(const ScanRows& rows) const {
    const std::int64_t size = std::int64_t{block.op.channels} * block.op.d_state;
    if (block.chunk == block.cut.chunks - 1) {
      if (block.op.final_state != nullptr && rows.write >= 0) {
        store(block.op.final_state + rows.write * size);
      }
    } else if (block.cut.first_chunk == 0) {
      const std::int64_t slot = block.b * (block.cut.chunks - 1) + block.chunk;
      store(block.cut.entries + slot * size);
      if (lane == 0 && count > 0) {
        block.cut.sums[slot * block.op.channels + channel] = delta_sum;
      }
    }
  }
};

template <bool Summary, class Block>
__device__ __forceinline__ void walk_time(const Block& block, const ScanRows& rows) {
  if (Block::thread() >= block.workers()) {
    ScanHelper<Block>(block).template help<Summary>();
    return;
  }
  ScanStates<Block> states(block);
  states.begin(rows);
  const int tiles = block.tiles();
  block_barrier();
  block_barrier();
  for (int tile = 0; tile <= tiles; ++tile) {
    if (tile < tiles) states.template walk<Summary>(tile, tile & 1);
    block_barrier();
  }
  states.end(rows);
}

// Summaries: the first pass over chunks, of which only chunk 0 writes y.
template <class T, int States, int Steps, int Channels, bool FewLanes, bool Summaries>
__global__ void __launch_bounds__(960)  // of five blocks, to bound a thread's registers
    scan_kernel(const __grid_constant__ ScanOperands op, const __grid_constant__ ScanCut cut) {
  extern __shared__ __align__(16) char scan_memory[];
  const ScanBlock<T, States, Steps, Channels, FewLanes> block(op, cut, scan_memory);
  const ScanRows rows = op.rows(block.b);
  const bool summary = Summaries && block.chunk > 0;
  if (rows.is_absent()) {
    if (!summary) block.finish_absent(rows.padding && !rows.bad);
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
  } else if (summary) {
    walk_time<true>(block, rows);
  } else {
    walk_time<false>(block, rows);
  }
}

}  // namespace mamba::cuda
