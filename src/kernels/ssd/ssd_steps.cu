// The recurrence of Ssd in f32, step after step: the reference on the device, what f32 models take,
// and what one step takes, whose work is to read and write the state once.
//
// A block has some channels of one head in one batch row. Tiles of B, C, x and what depends on dt
// come through shared memory. Four steps of two channels make eight sums over eight lanes: each
// exchange between lanes halves what is carried, and every lane ends with one sum.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/ssd/ssd_absent.cuh"
#include "kernels/ssd/ssd_launch.hpp"
#include "kernels/ssd/ssd_steps.cuh"

namespace mamba::cuda {

namespace {

constexpr int tile_steps = 16;
// Of a block.
template <int Quads>
constexpr int most_channels = Quads == 8 ? 32 : 64;
constexpr int lanes = ssd_lanes;

// A tile in shared memory; states are padded to the lanes' quads with zeros.
template <int Quads>
struct StepsTile {
  static constexpr int states = 4 * lanes * Quads;
  float B[tile_steps][states], C[tile_steps][states];
  float x[tile_steps][most_channels<Quads>];  // then y
  float delta[tile_steps], decay[tile_steps];
  int restart[tile_steps];
};

// Sums over eight lanes of eight values; lane l gets that of value l.
__device__ __forceinline__ float sum_of_my_value(float (&sum)[8], int lane) {
#pragma unroll
  for (int apart = 1; apart < lanes; apart *= 2) {
    const bool upper = (lane & apart) != 0;
#pragma unroll
    for (int i = 0; i < 4 / apart; ++i) {
      const float low = sum[2 * i], high = sum[2 * i + 1];
      sum[i] = __fadd_rn(upper ? high : low, __shfl_xor_sync(all_lanes, upper ? low : high, apart));
    }
  }
  return sum[0];
}

// What one thread does: all of a sequence for its part of two channels.
template <class T, int Quads, bool Whole>
struct StepsWalk {
  using Tile = StepsTile<Quads>;

  const SsdOperands& op;
  Tile& tile;
  StateRow<> rows;
  std::int64_t b, next_kept;  // the step before which a state is kept next
  int head, group, p0, p;     // p0: first channel of the block; p: of this thread, then p + 1
  int channels, lane;
  float bias, rate;
  SsdChannels<Quads, Whole> states;

  __device__ StepsWalk(const SsdOperands& operands, const SsdStepsCut& cut, Tile& memory)
      : op(operands), tile(memory), next_kept(0) {
    b = blockIdx.y + std::int64_t{gridDim.y} * blockIdx.z;
    const auto part = static_cast<int>(blockIdx.x);
    head = part / cut.tiles;
    group = head / op.group_heads;
    p0 = part % cut.tiles * cut.channels;
    channels = min(cut.channels, op.head_dim - p0);
    lane = static_cast<int>(threadIdx.x) % lanes;
    p = p0 + static_cast<int>(threadIdx.x) / lanes * 2;
  }

  __device__ void start() {
    if (op.initial == nullptr || rows.read < 0) {
      states.clear();
    } else {
      states.load(op, op.initial + op.state(rows.read, head, p), p, lane);
    }
    bias = op.dt_bias != nullptr ? op.dt_bias[head] : 0;
    rate = scaled_A(op.A_log[head]);
  }

  __device__ void load_tile(std::int64_t t0, int steps) {
    const auto thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32, warps = static_cast<int>(blockDim.x) / 32;
    for (int t = warp; t < steps; t += warps) {
      const T* B = op.B.at<T>(b, t0 + t) + op.first_state(group);
      const T* C = op.C.at<T>(b, t0 + t) + op.first_state(group);
#pragma unroll
      for (int i = 0; i < Quads; ++i) {
        const int n = thread % 32 + 32 * i;
        tile.B[t][n] = n < op.d_state ? to_float(B[n]) : 0;
        tile.C[t][n] = n < op.d_state ? to_float(C[n]) : 0;
      }
      const T* x = op.x.at<T>(b, t0 + t) + op.channel(head) + p0;
      for (int c = thread % 32; c < most_channels<Quads>; c += 32) {
        tile.x[t][c] = c < channels ? to_float(x[c]) : 0;
      }
    }
    if (thread >= steps) return;
    const float delta = op.delta(to_float(op.dt.at<T>(b, t0 + thread)[head]), bias);
    tile.delta[thread] = delta;
    tile.decay[thread] = decay(delta, rate);
    tile.restart[thread] = op.resets(b, t0 + thread);
  }

  // One step on; this thread's parts of y.
  __device__ __forceinline__ void advance_all(int t, float& first, float& second) {
    const float decay = tile.decay[t], delta = tile.delta[t];
    const auto x = load_vec<2>(&tile.x[t][p - p0]);
    const float in[2] = {__fmul_rn(delta, x.at[0]), __fmul_rn(delta, x.at[1])};
    float sum[2];
#pragma unroll
    for (int k = 0; k < Quads; ++k) {
      const auto B = load_vec<4>(&tile.B[t][states.state_of(lane, k)]);
      const auto C = load_vec<4>(&tile.C[t][states.state_of(lane, k)]);
      states.advance(k, decay, in, B.at, C.at, sum);
    }
    first = sum[0];
    second = sum[1];
  }

  __device__ __forceinline__ void step(std::int64_t t0, int t, float& first, float& second) {
    if (op.chunk_states != nullptr && t0 + t == next_kept) {
      const std::int64_t row = b * op.chunks + next_kept / op.chunk_steps;
      states.store(op, op.chunk_states + op.state(row, head, p), p, lane);
      next_kept += op.chunk_steps;
    }
    if (tile.restart[t] != 0) states.clear();
    advance_all(t, first, second);
    if (op.step_states.data != nullptr) {
      float* to = op.step_states.out<float>(b, t0 + t) + (op.channel(head) + p) * op.d_state;
      states.store(op, to, p, lane);
    }
  }

  __device__ void walk_tile(std::int64_t t0, int steps, float D) {
    for (int t = 0; t < steps; t += 4) {
      float sum[8] = {};  // two channels of each step
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (t + i < steps) step(t0, t + i, sum[2 * i], sum[2 * i + 1]);
      }
      const float total = sum_of_my_value(sum, lane);
      const int mine = t + lane / 2;
      if (mine >= steps) continue;
      // The lanes that read this x have added to the sum.
      float& at = tile.x[mine][p - p0 + lane % 2];
      at = op.D != nullptr ? __fmaf_rn(D, at, total) : total;
    }
  }

  __device__ void store_tile(std::int64_t t0, int steps) const {
    const auto thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32, warps = static_cast<int>(blockDim.x) / 32;
    for (int t = warp; t < steps; t += warps) {
      T* y = op.y.out<T>(b, t0 + t) + op.channel(head) + p0;
      for (int c = thread % 32; c < channels; c += 32) y[c] = from_float<T>(tile.x[t][c]);
    }
  }

  __device__ void run() {
    rows = op.rows(b);
    if (rows.is_absent()) return fill_absent<T>(op, rows, b, head, p0, channels);
    start();
    const float D = op.D != nullptr ? op.D[head] : 0;
    for (std::int64_t t0 = 0; t0 < op.time; t0 += tile_steps) {
      const int steps = static_cast<int>(min(op.time - t0, std::int64_t{tile_steps}));
      load_tile(t0, steps);
      __syncthreads();
      walk_tile(t0, steps, D);
      __syncthreads();
      store_tile(t0, steps);
      if (t0 + tile_steps < op.time) __syncthreads();
    }
    if (op.final_state != nullptr && rows.write >= 0) {
      states.store(op, op.final_state + op.state(rows.write, head, p), p, lane);
    }
  }
};

template <class T, int Quads, bool Whole>
__global__ void __launch_bounds__(4 * most_channels<Quads>, Quads == 8   ? (Whole ? 3 : 2)
                                                            : Quads == 4 ? 2
                                                                         : 3)
    steps_kernel(const __grid_constant__ SsdOperands op, const SsdStepsCut cut) {
  __shared__ StepsTile<Quads> tile;
  StepsWalk<T, Quads, Whole> walk(op, cut, tile);
  if (walk.b < op.batch) walk.run();
}

template <class T, int Quads>
void steps(const Ssd& op, Stream& stream) {
  const SsdOperands operands(op, stream);
  const SsdStepsCut cut(operands.head_dim, most_channels<Quads>);
  const auto kernel =
      ssd_in_whole_quads(op) ? steps_kernel<T, Quads, true> : steps_kernel<T, Quads, false>;
  launch(kernel, cut.grid(operands), static_cast<unsigned>(cut.threads()), 0, stream, "ssd",
         operands, cut);
}

}  // namespace

void ssd_steps(const Ssd& op, Stream& stream) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    with_ssd_quads(op, [&](auto quads) { steps<T, decltype(quads)::value>(op, stream); });
  });
}

}  // namespace mamba::cuda
