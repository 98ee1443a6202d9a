// CausalConv of any width: every output looks its taps up in memory. First all outputs, then the
// final states, so that nothing is overwritten that is still to be read.
#pragma once

#include "kernels/conv/causal_conv.cuh"

namespace mamba::cuda::conv {

constexpr int any_threads = 128;

// The inputs of one channel of one batch row at any step >= -past.
template <class T>
struct Inputs {
  const T* x;
  std::int64_t x_step;
  const T* initial;  // nullptr: zeros
  const std::int32_t* reset;
  std::int64_t past;

  __device__ __forceinline__ Inputs(const Operands<T>& op, const StateRow<>& row, std::int64_t b,
                                    std::int64_t c)
      : x(op.x + b * op.x_row + c),
        x_step(op.x_step),
        initial(op.initial != nullptr && row.read >= 0
                    ? op.initial + (row.read * op.channels + c) * op.past
                    : nullptr),
        reset(op.reset != nullptr ? op.reset + b * op.reset_row : nullptr),
        past(op.past) {}

  // The first step of the sequence that step t belongs to, as far as its past reaches.
  __device__ __forceinline__ std::int64_t start(std::int64_t t) const {
    if (reset == nullptr) return -past;
#pragma unroll 1
    for (std::int64_t s = t; s >= 0 && s > t - past; --s) {
      if (reset[s] != 0) return s;
    }
    return -past;
  }
  __device__ __forceinline__ T at(std::int64_t t, std::int64_t start) const {
    if (t < start || (t < 0 && initial == nullptr)) return from_float<T>(0);
    return t < 0 ? initial[t + past] : x[t * x_step];
  }
};

template <class T>
__global__ void __launch_bounds__(any_threads) conv_any_kernel(const Operands<T> op) {
  const std::int64_t count = op.batch * op.time * op.channels;
  const std::int64_t stride = std::int64_t{gridDim.x} * any_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t c = i % op.channels;
    const std::int64_t t = i / op.channels % op.time;
    const std::int64_t b = i / op.channels / op.time;
    const StateRow<> row = state_row(op, b);
    const Inputs<T> inputs(op, row, b, c);
    const bool absent = row.is_absent();
    const T instead = from_float<T>(row.bad ? nanf("") : 0.0f);
    const std::int64_t start = absent ? t + 1 : inputs.start(t);
    float y = op.bias != nullptr ? op.bias[c] : 0;
    const float* weight = op.weight + c * op.weight_row;
#pragma unroll 1
    for (int k = 0; !absent && k <= op.past; ++k) {
      y = fmaf(weight[k], to_float(inputs.at(t - op.past + k, start)), y);
    }
    op.y[b * op.y_row + t * op.y_step + c] =
        absent ? instead : from_float<T>(op.silu ? silu_approx(y) : y);
    if (op.states == nullptr) continue;
    T* state = op.states + b * op.states_row + t * op.states_step + c * op.past;
#pragma unroll 1
    for (int k = 0; k < op.past; ++k) {
      state[k] = absent ? instead : inputs.at(t - op.past + 1 + k, start);
    }
  }
}

// A thread walks the state of one channel from the oldest input up: what it reads in place lies
// ahead of what it writes.
template <class T>
__global__ void __launch_bounds__(any_threads) conv_final_kernel(const Operands<T> op) {
  const std::int64_t count = op.batch * op.channels;
  const std::int64_t stride = std::int64_t{gridDim.x} * any_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t c = i % op.channels;
    const std::int64_t b = i / op.channels;
    const StateRow<> row = state_row(op, b);
    if (row.bad || row.write < 0) continue;
    const Inputs<T> inputs(op, row, b, c);
    const std::int64_t start = inputs.start(op.time - 1);
    T* state = op.final_state + (row.write * op.channels + c) * op.past;
    for (int k = 0; k < op.past; ++k) state[k] = inputs.at(op.time - op.past + k, start);
  }
}

}  // namespace mamba::cuda::conv
