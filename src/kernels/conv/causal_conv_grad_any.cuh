// CausalConvGrad of any width, in three plain steps: the gradients of all sums of taps, kept in
// f32; from them those of all inputs; and those of the weights.
#pragma once

#include "kernels/conv/causal_conv_any.cuh"
#include "kernels/conv/causal_conv_grad.cuh"

namespace mamba::cuda::conv {

// Of batch and time, for one sum of the weights' gradients.
constexpr std::int64_t part_steps = 256;

// g [batch, time, channels]
template <class T>
__global__ void __launch_bounds__(any_threads)
    conv_grad_taps_kernel(const GradOperands<T> op, float* g) {
  const Operands<T>& of = op.of;
  const std::int64_t count = of.batch * of.time * of.channels;
  const std::int64_t stride = std::int64_t{gridDim.x} * any_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t c = i % of.channels;
    const std::int64_t t = i / of.channels % of.time;
    const std::int64_t b = i / of.channels / of.time;
    const float dy = to_float(op.dy[b * op.dy_row + t * op.dy_step + c]);
    if (!of.silu) {
      g[i] = dy;
      continue;
    }
    const Inputs<T> inputs(of, state_row(of, b), b, c);
    const std::int64_t start = inputs.start(t);
    const float* weight = of.weight + c * of.weight_row;
    float p = of.bias != nullptr ? of.bias[c] : 0;
#pragma unroll 1
    for (int k = 0; k <= of.past; ++k) {
      p = fmaf(weight[k], to_float(inputs.at(t - of.past + k, start)), p);
    }
    g[i] = silu_grad<T>(p, dy);
  }
}

// The inputs of steps -past (the initial state) to time - 1.
template <class T>
__global__ void __launch_bounds__(any_threads)
    conv_grad_inputs_kernel(const GradOperands<T> op, const float* g) {
  const Operands<T>& of = op.of;
  const std::int64_t steps = of.time + of.past;
  const std::int64_t count = of.batch * steps * of.channels;
  const std::int64_t stride = std::int64_t{gridDim.x} * any_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t c = i % of.channels;
    const std::int64_t t = i / of.channels % steps - of.past;
    const std::int64_t b = i / of.channels / steps;
    const std::int64_t state = (b * of.channels + c) * of.past;
    const std::int32_t* reset = of.reset != nullptr ? of.reset + b * of.reset_row : nullptr;
    const float* weight = of.weight + c * of.weight_row;
    const std::int64_t last = min(t + of.past, of.time - 1);
    float sum = 0;
    bool cut = false;  // by a reset, from what comes after
#pragma unroll 1
    for (std::int64_t s = t < 0 ? 0 : t; s <= last; ++s) {
      cut = s > t && reset != nullptr && reset[s] != 0;
      if (cut) break;
      sum = fmaf(weight[of.past - (s - t)], g[(b * of.time + s) * of.channels + c], sum);
    }
    const std::int64_t j = t - (of.time - of.past);
    if (j >= 0 && !cut && op.dfinal != nullptr) sum += to_float(op.dfinal[state + j]);
    if (t >= 0) {
      op.dx[b * op.dx_row + t * op.dx_step + c] = from_float<T>(sum);
    } else if (op.dinitial != nullptr) {
      op.dinitial[state + t + of.past] = from_float<T>(sum);
    }
  }
}

// partials[part, k, channels], k = past + 1 for the bias, of part_steps steps of batch and time.
template <class T>
__global__ void __launch_bounds__(any_threads)
    conv_grad_weights_kernel(const GradOperands<T> op, const float* g, float* partials,
                             std::int64_t parts) {
  const Operands<T>& of = op.of;
  const std::int64_t rows = of.past + 2;
  const std::int64_t count = parts * rows * of.channels;
  const std::int64_t stride = std::int64_t{gridDim.x} * any_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t c = i % of.channels;
    const std::int64_t k = i / of.channels % rows;
    const std::int64_t first = i / of.channels / rows * part_steps;
    const std::int64_t last = min(first + part_steps, of.batch * of.time);
    float sum = 0;
#pragma unroll 1
    for (std::int64_t row = first; row < last; ++row) {
      const std::int64_t b = row / of.time;
      const std::int64_t t = row % of.time;
      const float gradient = g[row * of.channels + c];
      if (k > of.past) {
        sum += gradient;
        continue;
      }
      const Inputs<T> inputs(of, state_row(of, b), b, c);
      sum = fmaf(gradient, to_float(inputs.at(t - of.past + k, inputs.start(t))), sum);
    }
    partials[i] = sum;
  }
}

}  // namespace mamba::cuda::conv
