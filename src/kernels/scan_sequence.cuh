// The kernel that walks time: the recurrence itself, and the order of the phases of scan_block.cuh.
#pragma once

#include "kernels/scan_block.cuh"

namespace mamba::cuda {

// One thread's states of one channel, and their walk through a tile.
template <class Block>
struct ScanStates {
  static constexpr int States = Block::states, Steps = Block::steps, pitch = Block::pitch;

  const Block& block;
  int row, lane;  // of the channel in shared memory; within the channel
  int channel;
  int count;  // of states that exist
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

  // Where this thread reads and writes in a tile.
  struct Places {
    const float *delta, *delta_x, *B, *C;
    float* part;
  };
  __device__ __forceinline__ Places places() const {
    const int r = recomputed(row), l = recomputed(lane);
    return {block.delta() + r * pitch, block.delta_x() + r * pitch,
            block.B() + l * Block::lane_pitch, block.C() + l * Block::lane_pitch,
            block.parts() + r * block.cut.part_channel + l * block.cut.part_lane};
  }

  // State k through four steps; C h is added to `sum`, or begins it.
  __device__ __forceinline__ void four_steps(int k, const Four& delta, const Four& delta_x,
                                             const Places& at, int t, bool begins, Four& sum) {
    const Four b = load_four(at.B + k * pitch + t), c = load_four(at.C + k * pitch + t);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      h[k] = advance(h[k], delta.at[i], A[k], delta_x.at[i], b.at[i]);
      sum.at[i] = begins ? __fmul_rn(c.at[i], h[k]) : __fmaf_rn(c.at[i], h[k], sum.at[i]);
    }
  }
  // States k and k + 1, then by the tree.
  template <int Count>
  __device__ __forceinline__ Four four_steps_of(int k, const Four& delta, const Four& delta_x,
                                                const Places& at, int t) {
    if constexpr (Count == 2) {
      Four sum;
      four_steps(k, delta, delta_x, at, t, true, sum);
      four_steps(k + 1, delta, delta_x, at, t, false, sum);
      return sum;
    } else {
      const Four low = four_steps_of<Count / 2>(k, delta, delta_x, at, t);
      return low + four_steps_of<Count / 2>(k + Count / 2, delta, delta_x, at, t);
    }
  }

  template <bool Summary>
  __device__ __forceinline__ void recur() {
    const Places at = places();
#pragma unroll(States > 4 ? 1 : 2)
    for (int t = 0; t < Steps; t += 4) {
      const Four d = load_four(at.delta + t), u = load_four(at.delta_x + t);
      const Four sum = four_steps_of<States>(0, d, u, at, t);
      if constexpr (Summary) {
        delta_sum = added(delta_sum, (d.at[0] + d.at[1]) + (d.at[2] + d.at[3]));
      } else {
        __syncwarp();  // the parts may take the place of what the other lane of a channel reads
        store_four(at.part + t, sum);
      }
    }
  }
  // -1 stays.
  __device__ static float added(float sum, float delta) { return sum < 0 ? sum : sum + delta; }

  // The same, one step at a time: for a tile that ends early, has resets or leaves its states.
  template <int Count>
  __device__ __forceinline__ float one_step_of(int k, float delta, float delta_x, const Places& at,
                                               int t) {
    if constexpr (Count == 1) {
      h[k] = advance(h[k], delta, A[k], delta_x, at.B[k * pitch + t]);
      return 0;
    } else if constexpr (Count == 2) {
      one_step_of<1>(k, delta, delta_x, at, t);
      one_step_of<1>(k + 1, delta, delta_x, at, t);
      return __fmaf_rn(at.C[(k + 1) * pitch + t], h[k + 1], __fmul_rn(at.C[k * pitch + t], h[k]));
    } else {
      const float low = one_step_of<Count / 2>(k, delta, delta_x, at, t);
      return __fadd_rn(low, one_step_of<Count / 2>(k + Count / 2, delta, delta_x, at, t));
    }
  }

  template <bool Summary>
  __device__ __forceinline__ void recur_carefully(int tile, int steps) {
    const Places at = places();
    const unsigned resets = block.op.reset != nullptr ? *block.resets() : 0;
    const ScanTrack& leaves = block.op.step_states;
#pragma unroll 1
    for (int t = 0; t < steps; ++t) {
      const bool reset = (resets >> t & 1) != 0;
#pragma unroll
      for (float& state : h) state = reset ? 0 : state;
      const float sum = one_step_of<States>(0, at.delta[t], at.delta_x[t], at, t);
      if constexpr (Summary) {
        delta_sum = reset ? -1 : added(delta_sum, at.delta[t]);
      } else {
        __syncwarp();
        at.part[t] = sum;
        if (leaves.data != nullptr) {
          store(leaves.out<float>(block.b, block.first + std::int64_t{tile} * Steps + t));
        }
      }
    }
  }

  template <bool Summary>
  __device__ __forceinline__ void walk(int tile) {
    const int steps = block.steps_of(tile);
    const bool resets = block.op.reset != nullptr && *block.resets() != 0;
    if (resets || steps < Steps || (!Summary && block.op.step_states.data != nullptr)) {
      recur_carefully<Summary>(tile, steps);
    } else {
      recur<Summary>();
    }
  }

  // The state before this block's first step. In the second pass it follows from what the chunks
  // before have left: entries[0] is the state after chunk 0, entries[j] what chunk j ends with from
  // zeros.
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

// recur | finish, prepare the next | recur | ..., with the copies of the next tile under recur.
// Several blocks share an SM and fill each other's gaps.
template <bool Summary, class Block, class States>
__device__ __forceinline__ void walk_in_phases(const Block& block, States& states) {
  const int tiles = block.tiles();
  if (tiles > 0) block.fill(0, 0);
  copies_commit();
  copies_wait_all();
  __syncthreads();
  if (tiles > 0) block.prepare(0);
  if (Block::thread() < 2) block.advance_cursor(Block::thread());
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) block.fill(tile + 1, (tile + 1) & 1);
    copies_commit();
    states.template walk<Summary>(tile);
    copies_wait_all();
    __syncthreads();
    if (!Summary) block.finish(tile, tile & 1);
    if (tile + 1 < tiles) block.prepare((tile + 1) & 1);
    if (Block::thread() < 2) block.advance_cursor(Block::thread());
    __syncthreads();
    if (Block::thread() == 2) block.advance_cursor(2);  // y's, before the next finish
  }
}

constexpr int few_lanes = 4;

// Summaries: the first pass over chunks, of which only chunk 0 writes y.
template <class T, int States, int Steps, int Channels, bool FewLanes, bool Summaries>
__global__ void __launch_bounds__(640)  // of five blocks, to bound a thread's registers
    scan_kernel(const __grid_constant__ ScanOperands op, const __grid_constant__ ScanCut cut) {
  extern __shared__ __align__(16) char scan_memory[];
  using Block = ScanBlock<T, States, Steps, Channels, FewLanes>;
  const Block block(op, cut, scan_memory);
  const ScanRows rows = op.rows(block.b);
  const bool summary = Summaries && block.chunk > 0;
  if (rows.is_absent()) {
    if (!summary) block.finish_absent(rows.padding && !rows.bad);
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
    return;
  }
  ScanStates<Block> states(block);
  states.begin(rows);
  if (summary) {
    walk_in_phases<true>(block, states);
  } else {
    walk_in_phases<false>(block, states);
  }
  states.end(rows);
}

}  // namespace mamba::cuda
