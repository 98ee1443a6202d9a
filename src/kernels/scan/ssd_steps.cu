// The recurrence of Ssd in f32, step after step: the reference on the device, what f32 models take,
// and what one step takes, whose work is to read and write the state once.
//
// A block has some channels of one head in one batch row. Eight neighbouring lanes hold the states
// of two channels: lane l has states 4 (l + 8 k) to 4 (l + 8 k) + 3 for every k, so that a warp
// reads whole lines of the state. Tiles of B, C, x and what depends on dt come through shared
// memory. Four steps of two channels make eight sums over eight lanes: each exchange between lanes
// halves what is carried, and every lane ends with one sum.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/scan/ssd_absent.cuh"
#include "kernels/scan/ssd_launch.hpp"

namespace mamba::cuda {

namespace {

constexpr int tile_steps = 16;
constexpr int lanes = 8;           // of a channel
constexpr int most_channels = 64;  // of a block

// How a head's channels are cut.
struct StepsCut {
  int tiles, channels;  // of a head; of a tile, a multiple of a warp's eight

  explicit StepsCut(int head_dim) {
    tiles = (head_dim + most_channels - 1) / most_channels;
    channels = ((head_dim + tiles - 1) / tiles + 7) / 8 * 8;
  }
  int threads() const { return channels / 2 * lanes; }
};

// A tile in shared memory; states are padded to the lanes' quads with zeros.
template <int Quads>
struct StepsTile {
  static constexpr int states = 4 * lanes * Quads;
  float B[tile_steps][states], C[tile_steps][states];
  float x[tile_steps][most_channels];  // then y
  float delta[tile_steps], decay[tile_steps];
  int restart[tile_steps];
};

// Four states from `n` on, of d_state. Whole: all exist or none, and they are aligned.
template <bool Whole>
__device__ __forceinline__ Vec<float, 4> load_quad(const float* from, int n, int d_state) {
  Vec<float, 4> quad{};
  if constexpr (Whole) {
    if (n < d_state) quad = load_vec<4>(from + n);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) quad.at[k] = n + k < d_state ? from[n + k] : 0;
  }
  return quad;
}
template <bool Whole>
__device__ __forceinline__ void store_quad(float* to, int n, int d_state,
                                           const Vec<float, 4>& quad) {
  if constexpr (Whole) {
    if (n < d_state) store_vec(to + n, quad);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (n + k < d_state) to[n + k] = quad.at[k];
    }
  }
}

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
  Vec<float, 4> h[2][Quads];

  __device__ StepsWalk(const SsdOperands& operands, const StepsCut& cut, Tile& memory)
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
    const bool zero = op.initial == nullptr || rows.read < 0;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float* from = op.initial + op.state(rows.read, head, p + c);
#pragma unroll
      for (int k = 0; k < Quads; ++k) {
        h[c][k] = zero || p + c >= op.head_dim ? Vec<float, 4>{}
                                               : load_quad<Whole>(from, state_of(k), op.d_state);
      }
    }
    bias = op.dt_bias != nullptr ? op.dt_bias[head] : 0;
    rate = scaled_A(op.A_log[head]);
  }
  __device__ int state_of(int quad) const { return 4 * (lane + lanes * quad); }

  __device__ void keep(float* to) const {  // to: of the thread's first channel
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (p + c >= op.head_dim) continue;
#pragma unroll
      for (int k = 0; k < Quads; ++k) {
        store_quad<Whole>(to + c * op.d_state, state_of(k), op.d_state, h[c][k]);
      }
    }
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
      for (int c = thread % 32; c < most_channels; c += 32) {
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
      const auto B = load_vec<4>(&tile.B[t][state_of(k)]), C = load_vec<4>(&tile.C[t][state_of(k)]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& state = h[c][k].at[i];
          state = __fmaf_rn(decay, state, __fmul_rn(in[c], B.at[i]));
          const bool begins = k == 0 && i == 0;
          sum[c] = begins ? __fmul_rn(C.at[i], state) : __fmaf_rn(C.at[i], state, sum[c]);
        }
      }
    }
    first = sum[0];
    second = sum[1];
  }

  __device__ __forceinline__ void step(std::int64_t t0, int t, float& first, float& second) {
    if (op.chunk_states != nullptr && t0 + t == next_kept) {
      keep(op.chunk_states + op.state(b * op.chunks + next_kept / op.chunk_steps, head, p));
      next_kept += op.chunk_steps;
    }
    if (tile.restart[t] != 0) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int k = 0; k < Quads; ++k) h[c][k] = {};
      }
    }
    advance_all(t, first, second);
    if (op.step_states.data != nullptr) {
      keep(op.step_states.out<float>(b, t0 + t) + (op.channel(head) + p) * op.d_state);
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
      keep(op.final_state + op.state(rows.write, head, p));
    }
  }
};

template <class T, int Quads, bool Whole>
__global__ void __launch_bounds__(256, Quads == 8 && !Whole ? 1
                                       : Quads >= 4         ? 2
                                                            : 3)
    steps_kernel(const __grid_constant__ SsdOperands op, const StepsCut cut) {
  __shared__ StepsTile<Quads> tile;
  StepsWalk<T, Quads, Whole> walk(op, cut, tile);
  let_next_begin();
  wait_for_previous();
  if (walk.b < op.batch) walk.run();
}

// Whether states can be taken four at a time.
bool in_whole_quads(const Ssd& op) {
  const auto fits = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), view.row_pitch() * 4, 16);
  };
  const bool steps_fit = !op.step_states || op.step_states.step_pitch() % 4 == 0;
  return op.B.dim(2) / op.groups % 4 == 0 && fits(op.initial_state) && fits(op.final_state) &&
         fits(op.chunk_states) && fits(op.step_states) && steps_fit;
}

template <class T, int Quads>
void steps(const Ssd& op, Stream& stream) {
  const SsdOperands operands(op, stream);
  const StepsCut cut(operands.head_dim);
  constexpr std::int64_t most = 65535;
  const std::int64_t batch = operands.batch;
  const dim3 grid(static_cast<unsigned>(operands.heads * cut.tiles),
                  static_cast<unsigned>(std::min(batch, most)),
                  static_cast<unsigned>((batch + most - 1) / most));
  const auto kernel =
      in_whole_quads(op) ? steps_kernel<T, Quads, true> : steps_kernel<T, Quads, false>;
  launch_chained(kernel, grid, static_cast<unsigned>(cut.threads()), 0, stream, "ssd", operands,
                 cut);
}

}  // namespace

void ssd_steps(const Ssd& op, Stream& stream) {
  const std::int64_t d_state = op.B.dim(2) / op.groups;
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (d_state <= 32) return steps<T, 1>(op, stream);
    if (d_state <= 64) return steps<T, 2>(op, stream);
    if (d_state <= 128) return steps<T, 4>(op, stream);
    return steps<T, 8>(op, stream);
  });
}

}  // namespace mamba::cuda
