// The functions of a GRU's gates on CUDA, without branches: a step waits for each instruction of
// theirs. Rollouts and sequences share them, so that both see the same policy.
#pragma once

#include "rl/gru/gru_scalar.hpp"

namespace mamba_rl::cuda {

// One instruction each, within 2 and 1 units in the last place; what would be subnormal is zero.
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

constexpr float log2e = 1.44269504f;

// Within 5 * 2^-24. The rounding of x log2(e) is worth |x| roundings of the exponential, but not
// even a third of one of the sum: (1 - s) s |x| < 0.23.
__device__ __forceinline__ float sigmoid(float x) {
  return reciprocal_approx(1 + exp2_approx(-log2e * x));
}

// Within about 8 roundings of the result: 1 - 2 / (1 + exp(2 x)) loses digits round 0, where the
// minimax polynomial of degree 7 is exact to a quarter of one.
__device__ __forceinline__ float tanh_of(float x) {
  const float square = x * x;
  float p = 1.72414910e-2f;
  p = fmaf(p, square, -5.30454926e-2f);
  p = fmaf(p, square, 1.33258790e-1f);
  p = fmaf(p, square, -3.33331436e-1f);
  const float near = fmaf(x * square, p, x);
  const float far = fmaf(-2.0f, reciprocal_approx(1 + exp2_approx(2 * log2e * x)), 1.0f);
  return fabsf(x) < 0.5f ? near : far;
}

__device__ __forceinline__ GruUnit gru_unit(float r, float z, float i_n, float g_n) {
  const float open = sigmoid(r);
  return {open, sigmoid(z), tanh_of(fmaf(open, g_n, i_n)), g_n};
}

}  // namespace mamba_rl::cuda
