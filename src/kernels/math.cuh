// Scalar functions that kernels share, each a few instructions whose accuracy is stated.
#pragma once

namespace mamba::cuda {

constexpr float log2e = 1.44269502e+0f;  // log2(e) rounded to f32

// One instruction each: 2 and 1 units in the last place. Subnormals count as zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// 1 / (1 + exp(-x)), relative error about |x| + 4 roundings. Below -88 the exponential is infinite
// and the result 0.
__device__ __forceinline__ float sigmoid_approx(float x) {
  return reciprocal_approx(1 + exp2_approx(-log2e * x));
}

// d silu(p) / dp dy, where silu(p) = p s and s = sigmoid(p).
__device__ __forceinline__ float silu_grad_approx(float p, float dy) {
  const float s = sigmoid_approx(p);
  return dy * fmaf(p * s, 1 - s, s);
}

}  // namespace mamba::cuda
