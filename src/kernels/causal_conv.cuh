// What the kernels of CausalConv share: the operands as plain pointers, which state row a batch row
// stands for, and one step of the convolution. Every kernel computes a step with `convolve`, taps
// in the same order, so that it cannot matter where time is cut or which kernel ran.
#pragma once

#include "kernels/vec.cuh"

namespace mamba::cuda::conv {

template <class T>
struct Operands {
  const T* x;  // [batch, time, channels]
  std::int64_t x_row, x_step;
  const float* weight;  // [channels, past + 1]
  std::int64_t weight_row;
  const float* bias;          // [channels]; may be nullptr
  const T* initial;           // [state_rows, channels, past]; may be nullptr
  T* final_state;             // the same
  const std::int32_t* read;   // [batch]; may be nullptr
  const std::int32_t* write;  // [batch]; may be nullptr
  std::int64_t state_rows;
  const std::int32_t* reset;  // [batch, time]; may be nullptr
  std::int64_t reset_row;
  T* states;  // [batch, time, channels, past]; may be nullptr
  std::int64_t states_row, states_step;
  T* y;  // [batch, time, channels]
  std::int64_t y_row, y_step;
  std::int64_t batch, time, channels;
  int past;  // width - 1
  bool silu;
  bool wide_weights;  // weight and bias may be read 16 bytes at a time
  int* bad_row;
};

// The state rows of a batch row (see RowMap).
struct StateRow {
  std::int64_t read, write;
  bool bad;  // one of them does not exist: y is NaN, nothing is written

  template <class T>
  __device__ __forceinline__ StateRow(const Operands<T>& op, std::int64_t b)
      : read(op.read != nullptr ? op.read[b] : b),
        write(op.write != nullptr ? op.write[b] : b),
        bad(read >= op.state_rows || write >= op.state_rows) {
    if (bad) *op.bad_row = 1;
  }
  __device__ __forceinline__ bool is_padding() const { return read < 0 && write < 0; }
};

// One instruction each: 2 and 1 units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// x / (1 + exp(-x)). Below -88 the exponential is infinite and the result -0.
__device__ __forceinline__ float silu(float x) {
  constexpr float log2_e = 1.44269504f;
  return x * fast_reciprocal(1 + fast_exp2(-log2_e * x));
}

// The weights of V channels, in registers.
template <int kWidth, int V>
struct Filter {
  float weight[kWidth][V];
  float bias[V];

  template <class T>
  __device__ __forceinline__ void load(const Operands<T>& op, std::int64_t channel) {
    const float* from = op.weight + channel * op.weight_row;
    if (kWidth == 4 && op.wide_weights) {
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const Vec<float, 4> row = load_vec<4>(from + c * op.weight_row);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weight[k][c] = row.at[k % 4];
      }
    } else {
#pragma unroll
      for (int c = 0; c < V; ++c) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) weight[k][c] = from[c * op.weight_row + k];
      }
    }
#pragma unroll
    for (int c = 0; c < V; ++c) bias[c] = op.bias != nullptr ? op.bias[channel + c] : 0;
  }

  // The output of the step whose input is taps[kWidth - 1].
  template <class T>
  __device__ __forceinline__ Vec<T, V> convolve(const Vec<T, V>* taps, bool with_silu) const {
    Vec<T, V> result;
#pragma unroll
    for (int c = 0; c < V; ++c) {
      float y = bias[c];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) y = fmaf(weight[k][c], to_float(taps[k].at[c]), y);
      result.at[c] = from_float<T>(with_silu ? silu(y) : y);
    }
    return result;
  }
};

template <int V, class T>
__device__ __forceinline__ Vec<T, V> splat(float value) {
  Vec<T, V> result;
#pragma unroll
  for (int c = 0; c < V; ++c) result.at[c] = from_float<T>(value);
  return result;
}

// A state is [channel][past] in memory and taps[past][channel] in registers: V channels are kPast
// whole vectors.
template <int kPast, int V, class T>
__device__ __forceinline__ void load_state(const T* from, Vec<T, V>* taps) {
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
    const Vec<T, V> part = load_vec<V>(from + j * V);
#pragma unroll
    for (int i = 0; i < V; ++i) taps[(j * V + i) % kPast].at[(j * V + i) / kPast] = part.at[i];
  }
}
template <int kPast, int V, class T>
__device__ __forceinline__ void store_state(const Vec<T, V>* taps, T* to) {
#pragma unroll
  for (int j = 0; j < kPast; ++j) {
    Vec<T, V> part;
#pragma unroll
    for (int i = 0; i < V; ++i) part.at[i] = taps[(j * V + i) % kPast].at[(j * V + i) / kPast];
    store_vec(to + j * V, part);
  }
}

}  // namespace mamba::cuda::conv
