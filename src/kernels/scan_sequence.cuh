// The kernel that walks time: the recurrence itself, and the two ways to order the phases of
// scan_block.cuh. See there.
#pragma once

#include "kernels/scan_block.cuh"

namespace mamba::cuda {

// One thread's states of one channel, and their walk through a tile.
template <class Block, int States, int Steps>
struct ScanStates {
  static constexpr int pitch = Block::pitch;

  const Block& block;
  int channel, lane;  // within the block, within the channel
  bool works;
  float A[States], h[States];
  float delta_sum = 0;  // over the chunk, for summaries; < 0 once there was a reset

  __device__ explicit ScanStates(const Block& b) : block(b) {
    const int thread = static_cast<int>(threadIdx.x);
    channel = thread / block.cut.lanes;
    lane = thread & (block.cut.lanes - 1);
    works = channel < block.cut.channels;
    const float* A_log = block.op.A_log + (block.channel + channel) * block.op.A_log_pitch;
#pragma unroll
    for (int k = 0; k < States; ++k) {
      A[k] = exists(k) ? scaled_A(A_log[state(k)]) : 0;
      h[k] = 0;
    }
  }

  __device__ int state(int k) const { return lane * States + k; }
  __device__ bool exists(int k) const {
    return works && block.channel + channel < block.op.channels && state(k) < block.op.d_state;
  }

  __device__ void load(const float* channels) {
    const float* from = channels + (block.channel + channel) * std::int64_t{block.op.d_state};
#pragma unroll
    for (int k = 0; k < States; ++k) h[k] = exists(k) ? from[state(k)] : 0;
  }
  __device__ void store(float* channels) const {
    float* to = channels + (block.channel + channel) * std::int64_t{block.op.d_state};
#pragma unroll
    for (int k = 0; k < States; ++k) {
      if (exists(k)) to[state(k)] = h[k];
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
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (Careful && (care.resets >> i & 1) != 0) h[k] = 0;
      const float next = advance(h[k], delta.at[i], A[k], delta_x.at[i], b.at[i]);
      if (!Careful || i < care.steps) h[k] = next;
      sum.at[i] = begins ? __fmul_rn(c.at[i], h[k]) : __fmaf_rn(c.at[i], h[k], sum.at[i]);
      if (Careful && care.out != nullptr && i < care.steps && exists(k)) {
        care.out[i * block.op.step_states.step_pitch + k] = h[k];
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
    const float* delta = block.delta(buffer) + channel * pitch;
    const float* delta_x = block.delta_x(buffer) + channel * pitch;
    const float* B = block.B(buffer) + lane * States * pitch;
    const float* C = block.C(buffer) + lane * States * pitch;
    float* part = block.parts(buffer) + channel * block.cut.y_pitch + lane * pitch;
    Care care;
    if (Careful) {
      if (block.op.reset != nullptr) care.resets = *block.resets(buffer);
      if (!Summary && block.op.step_states.data != nullptr) {
        care.out = block.op.step_states.template out<float>(
                       block.b, block.first + std::int64_t{tile} * Steps) +
                   (block.channel + channel) * std::int64_t{block.op.d_state} + state(0);
      }
    }
#pragma unroll(Careful || States > 4 ? 1 : 2)
    for (int t = 0; t < Steps; t += 4) {
      if (Careful) care.steps = steps - t;
      const Four d = load_four(delta + t), u = load_four(delta_x + t);
      const Four sum = states_from<States, Careful>(0, d, u, B + t, C + t, care);
      if (!Summary) store_four(part + t, sum);
      if (Summary) add_deltas<Careful>(d, care);
      if (Careful) {
        care.resets >>= 4;
        if (care.out != nullptr) care.out += 4 * block.op.step_states.step_pitch;
      }
    }
  }

  template <bool Careful>
  __device__ __forceinline__ void add_deltas(const Four& delta, const Care& care) {
    if (Careful) {  // a chunk that is summarised never ends within a tile
      if ((care.resets & 15u) != 0) delta_sum = -1;
      if (delta_sum < 0) return;
    }
    if (delta_sum >= 0 || delta_sum != delta_sum) {
      delta_sum += (delta.at[0] + delta.at[1]) + (delta.at[2] + delta.at[3]);
    }
  }

  template <bool Summary>
  __device__ __forceinline__ void walk(int tile, int buffer) {
    if (!works) return;
    const int steps = block.steps_of(tile);
    const bool resets = block.op.reset != nullptr && *block.resets(buffer) != 0;
    if (resets || steps < Steps || (!Summary && block.op.step_states.data != nullptr)) {
      recur<true, Summary>(tile, buffer, steps);
    } else {
      recur<false, Summary>(tile, buffer, steps);
    }
  }

  // The state before this block's first step. Of a later chunk it follows from what the chunks before
  // it left: entries[0] is the initial state, entries[j] what chunk j - 1 ends with if it starts from
  // zeros (chunk 0: from the initial state).
  __device__ void begin(const ScanRows& rows, bool summary) {
    const std::int64_t chunk = block.chunk();
    const std::int64_t size = std::int64_t{block.op.channels} * block.op.d_state;
    if (block.cut.entries == nullptr || (summary && chunk == 0)) {
      if (block.op.initial != nullptr && rows.read >= 0) load(block.op.initial + rows.read * size);
      if (summary) store(block.cut.entries + block.b * block.cut.chunks * size);
      return;
    }
    if (summary) return;
    const float* entries = block.cut.entries + block.b * block.cut.chunks * size;
    load(entries + min(chunk, std::int64_t{1}) * size);
    const float* sums = block.cut.sums + block.b * block.cut.chunks * block.op.channels +
                        block.channel + channel;
    for (std::int64_t j = 1; j < chunk; ++j) {
      float before[States];
#pragma unroll
      for (int k = 0; k < States; ++k) before[k] = h[k];
      load(entries + (j + 1) * size);
      const float sum = exists(0) ? sums[j * block.op.channels] : 0;
#pragma unroll
      for (int k = 0; k < States; ++k) {
        if (sum >= 0 || sum != sum) h[k] = __fmaf_rn(decay(sum, A[k]), before[k], h[k]);
      }
    }
  }

  __device__ void end(const ScanRows& rows, bool summary) const {
    const std::int64_t size = std::int64_t{block.op.channels} * block.op.d_state;
    if (summary) {
      const std::int64_t slot = block.b * block.cut.chunks + block.chunk();
      store(block.cut.entries + (slot + 1) * size);
      if (lane == 0 && exists(0)) {
        block.cut.sums[slot * block.op.channels + block.channel + channel] = delta_sum;
      }
    } else if (block.first + block.length == block.op.time && block.op.final_state != nullptr && rows.write >= 0) {
      store(block.op.final_state + rows.write * size);
    }
  }
};

// Everyone does everything, in phases: recur | finish and prepare the next | recur ... Little shared
// memory, so that several blocks share an SM and fill each other's gaps.
template <bool Summary, class Block, class States>
__device__ __forceinline__ void walk_in_phases(const Block& block, States& states) {
  const bool helps = block.helper < block.cut.helpers;
  const int tiles = block.tiles();
  if (helps && tiles > 0) block.fill(0, 0);
  copies_commit();
  copies_wait<0>();
  __syncthreads();
  if (helps && tiles > 0) block.prepare(0, 0);
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    if (helps && tile + 1 < tiles) block.fill(tile + 1, (tile + 1) & 1);
    copies_commit();
    states.template walk<Summary>(tile, 0);
    copies_wait<0>();
    __syncthreads();
    if (helps) {
      if (!Summary) block.finish(tile, tile & 1, 0);
      if (tile + 1 < tiles) block.prepare((tile + 1) & 1, 0);
    }
    __syncthreads();
  }
}

// Some warps recur through tile i while the others finish tile i - 1 and prepare tile i + 1, one barrier
// a tile. For few channels, where phases of one block would leave the SM idle.
constexpr int pipeline_stages = 5;

// The same barrier wherever its callers are in the code.
__device__ __forceinline__ void block_barrier() {
  asm volatile("bar.sync 1, %0;" ::"r"(blockDim.x) : "memory");
}

template <class Block>
__device__ __forceinline__ void help_in_pipeline(const Block& block) {
  constexpr int stages = pipeline_stages;
  const int tiles = block.tiles();
  for (int tile = 0; tile < stages - 2; ++tile) {
    if (tile < tiles) block.fill(tile, tile);
    copies_commit();
  }
  copies_wait<stages - 4>();
  block_barrier();
  if (tiles > 0) block.prepare(0, 0);
  block_barrier();
  int stage = 0;  // of tile i
  const auto ring = [&](int ahead) {
    const int s = stage + ahead;
    return s < 0 ? s + stages : s >= stages ? s - stages : s;
  };
  for (int tile = 0; tile <= tiles; ++tile) {
    if (tile + stages - 2 < tiles) block.fill(tile + stages - 2, ring(stages - 2));
    copies_commit();
    if (tile > 0) block.finish(tile - 1, ring(-1), (tile - 1) & 1);
    if (tile + 1 < tiles) block.prepare(ring(1), (tile + 1) & 1);
    copies_wait<stages - 4>();
    block_barrier();
    stage = ring(1);
  }
}

template <class Block, class States>
__device__ __forceinline__ void recur_in_pipeline(const Block& block, States& states) {
  const int tiles = block.tiles();
  block_barrier();
  block_barrier();
  for (int tile = 0; tile <= tiles; ++tile) {
    if (tile < tiles) states.template walk<false>(tile, tile & 1);
    block_barrier();
  }
}

// FewLanes: a channel has at most `few_lanes`.
constexpr int few_lanes = 4;

// Bounds a thread's registers: in phases, five blocks of 128 threads share an SM.
template <bool Pipeline>
constexpr int register_threads = Pipeline ? 512 : 640;

template <class T, int States, int Steps, int Width, bool Pipeline, bool FewLanes, bool Summary>
__global__ void __launch_bounds__(register_threads<Pipeline>)
    scan_kernel(const __grid_constant__ ScanOperands op, const __grid_constant__ ScanCut cut) {
  extern __shared__ __align__(16) char scan_memory[];
  using Block = ScanBlock<T, Steps, Width, FewLanes>;
  const Block block(op, cut, scan_memory);
  const ScanRows rows = op.rows(block.b);
  if (rows.is_absent()) {
    if (!Summary) block.finish_absent(rows.padding && !rows.bad);
    if (rows.bad && op.flag != nullptr && threadIdx.x == 0) *op.flag = 1;
    return;
  }
  if (Pipeline && block.helper >= 0) {
    help_in_pipeline(block);
    return;
  }
  ScanStates<Block, States, Steps> states(block);
  states.begin(rows, Summary);
  if constexpr (Pipeline) {
    recur_in_pipeline(block, states);
  } else {
    walk_in_phases<Summary>(block, states);
  }
  states.end(rows, Summary);
}

}  // namespace mamba::cuda
