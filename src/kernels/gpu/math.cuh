// Scalar functions that kernels share, each a few instructions whose accuracy is stated.
#pragma once

#include <type_traits>

#include "kernels/gpu/ptx.cuh"

namespace mamba::cuda {

constexpr float log2e = 1.44269502e+0f;  // log2(e) rounded to f32

// 1 / (1 + exp(-x)), relative error about |x| + 4 roundings. Below -88 the exponential is infinite
// and the result 0.
__device__ __forceinline__ float sigmoid_approx(float x) {
  return reciprocal_approx(1 + exp2_approx(-log2e * x));
}

// The same as accurately as the storage type T shows it.
template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return 1 / (1 + expf(-x));
  } else {
    return sigmoid_approx(x);
  }
}

// dy silu'(x), where silu(x) = x s and silu'(x) = s + x s (1 - s), s = sigmoid(x). In f32 1 - s is
// a sigmoid of its own: where s is near 1 the difference has few digits.
template <class T>
__device__ __forceinline__ float silu_grad(float x, float dy) {
  if constexpr (std::is_same_v<T, float>) {
    const float e = expf(-fabsf(x)), large = 1 / (1 + e), small = e * large;
    const float s = x < 0 ? small : large, rest = x < 0 ? large : small;
    return dy * fmaf(x * s, rest, s);
  } else {
    const float s = sigmoid_approx(x);
    return dy * fmaf(x * s, 1 - s, s);
  }
}

}  // namespace mamba::cuda
