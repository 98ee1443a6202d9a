// What the kernels of SsdGrad know of the steps of one head in one chunk, before and behind their
// products: delta and the decays, and in the end what of dlog_a, ddelta and the sums.
#pragma once

#include "kernels/gpu/math.cuh"
#include "kernels/ssd_grad/operands.cuh"

namespace mamba::cuda {

// The sum over the lanes up to this one.
template <class F>
__device__ __forceinline__ F sum_of_lanes_up_to(F value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const F other = __shfl_up_sync(all_lanes, value, apart);
    if (lane >= apart) value += other;
  }
  return value;
}
__device__ __forceinline__ float sum_of_lanes_from(float value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const float other = __shfl_down_sync(all_lanes, value, apart);
    if (lane + apart < 32) value += other;
  }
  return value;
}
__device__ __forceinline__ float sum_of_lanes(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(all_lanes, value, apart);
  return value;
}

// By one warp, two steps a lane.
template <class T>
__device__ void find_steps(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int head) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const SsdGradChunk chunk = op.chunk(c);
  const std::int64_t b = op.first_row + row;
  const float bias = op.dt_bias == nullptr ? 0 : op.dt_bias[head];
  const float rate = expf(op.A_log[head]);
  float delta[2] = {}, slope[2] = {};
  double sums[2] = {};
  bool parted = false;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int i = 2 * lane + n;
    if (i >= chunk.steps) continue;
    const float raw = to_float(op.dt.at<T>(b, chunk.start + i)[head]) + bias;
    const float smooth = op.softplus ? softplus(raw) : raw;
    delta[n] = max_or_nan(smooth, op.dt_low);
    if (delta[n] > op.dt_high) delta[n] = op.dt_high;
    const bool inside = delta[n] > op.dt_low && delta[n] < op.dt_high;
    slope[n] = inside ? (op.softplus ? sigmoid<float>(raw) : 1.0f) : 0.0f;
    // A step that forgets all counts as no more than that, so that sums keep their digits.
    sums[n] = fminf(delta[n] * rate, 4096.0f);
    if (op.reset != nullptr && op.reset[b * op.reset_pitch + chunk.start + i] != 0) {
      sums[n] += ssd_reset_decay;
      parted = true;
    }
  }
  const double both = sums[0] + sums[1];
  const double up_to = sum_of_lanes_up_to(both);
  sums[0] += up_to - both;
  sums[1] = up_to;
  const double all = __shfl_sync(all_lanes, up_to, 31);
  parted = __any_sync(all_lanes, parted);
  if (head == 0 && lane == 0) op.parted[row * op.chunks + c] = parted;
  float* to = op.steps + op.at_head(row, c, head) * SsdGradSteps::floats;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int i = 2 * lane + n;
    const auto high = static_cast<float>(sums[n]);
    const float end = exp_of_minus(static_cast<float>(all - sums[n]));
    const auto put = [&](SsdGradSteps::Array array, float value) {
      to[array * ssd_chunk + i] = value;
    };
    put(SsdGradSteps::deltas, delta[n]);
    put(SsdGradSteps::ends, end);
    // What a reset parts from the end is zero, whatever delta is there.
    put(SsdGradSteps::weights, end == 0 ? 0 : delta[n] * end);
    put(SsdGradSteps::starts, exp_of_minus(high));
    put(SsdGradSteps::sums, high);
    put(SsdGradSteps::rests, static_cast<float>(sums[n] - high));
    put(SsdGradSteps::slopes, slope[n]);
  }
}

constexpr int ssd_steps_warps = 8;  // of a block
template <class T>
__global__ void __launch_bounds__(32 * ssd_steps_warps)
    ssd_grad_steps_kernel(const __grid_constant__ SsdGradOperands op) {
  const std::int64_t at = std::int64_t{blockIdx.x} * ssd_steps_warps + threadIdx.x / 32;
  if (at >= op.rows * op.chunks * op.heads) return;
  const std::int64_t chunk = at / op.heads, row = chunk / op.chunks;
  find_steps<T>(op, row, chunk - row * op.chunks, static_cast<int>(at - chunk * op.heads));
}

// What the products say of a step: the four sums of dlog_a, of the first all that spans the step,
// of the next two the step's own terms, and x . q and dy . x.
struct SsdStepSums {
  float within, from_state, to_adjoint, input, skip;
};

// By one warp, for the two steps of each lane; through: E[last] <G, S>.
template <class T>
__device__ void finish_steps(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int head,
                             const SsdStepSums (&of)[2], float through) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const SsdGradChunk chunk = op.chunk(c);
  const SsdGradSteps steps = op.steps_of(row, c, head);
  const float A = -expf(op.A_log[head]);
  const float states = of[0].from_state + of[1].from_state;
  const float adjoints = of[0].to_adjoint + of[1].to_adjoint;
  float behind = __shfl_down_sync(all_lanes, sum_of_lanes_from(states), 1);
  float before = __shfl_up_sync(all_lanes, sum_of_lanes_up_to(adjoints), 1);
  if (lane == 31) behind = 0;
  if (lane == 0) before = 0;
  const float from[2] = {behind + of[1].from_state + of[0].from_state, behind + of[1].from_state};
  const float to[2] = {before, before + of[0].to_adjoint};
  float dA = 0, ddt_sum = 0;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int i = 2 * lane + n;
    const float dlog_a = of[n].within + from[n] + to[n] + through;
    const float slope = steps.slope(i);
    const float ddt = slope == 0 ? 0 : slope * (of[n].input + A * dlog_a);
    dA += steps.delta(i) * dlog_a;
    ddt_sum += ddt;
    if (i < chunk.steps) {
      op.ddt.out<T>(op.first_row + row, chunk.start + i)[head] = from_float<T>(ddt);
    }
  }
  const float sums[3] = {A * sum_of_lanes(dA), sum_of_lanes(of[0].skip + of[1].skip),
                         sum_of_lanes(ddt_sum)};
  float* all = op.sums + ((op.first_row + row) * op.chunks + c) * 3 * op.heads + head;
  if (lane == 0) {
    all[0] = sums[0];
    all[op.heads] = sums[1];
    all[2 * op.heads] = sums[2];
  }
}

}  // namespace mamba::cuda
