// The arithmetic of the selective scan, which every plan shares so that they agree to the bit: a
// decay or a delta is computed by the same instructions in the one-step kernel and in the long
// ones, and sums over states follow one tree whoever holds the states. Every rounding is spelled
// out (__fmul_rn, __fmaf_rn), because the compiler's own choice of what to fuse may differ by
// kernel.
//
// Special functions (ex2, rcp) start at 16 lanes a clock and SM against 128 for FMAs: with 16
// states they are what bounds the scan, so the logarithm in softplus is a polynomial.
#pragma once

#include <cfloat>
#include <type_traits>

#include "kernels/gpu/math.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

constexpr float ln2 = 6.93147182e-1f;  // ln(2) rounded to f32, and what the rounding left out
constexpr float ln2_rest = -1.90465430e-9f;

// exp(-a) for a >= 0, relative error about 3 roundings. The product a log2(e) alone is off by a
// roundings; what it missed comes back as a factor 1 + rest. Beyond 128 the result is zero anyway.
__device__ __forceinline__ float exp_of_minus(float a) {
  a = fminf(a, 128.0f);
  const float power = __fmul_rn(a, -log2e);
  const float rest = __fmaf_rn(power, -ln2_rest, __fmaf_rn(power, -ln2, -a));
  const float e = exp2_approx(power);
  return __fmaf_rn(e, rest, e);
}

// log(1 + exp(v)) = max(v, 0) + log1p(exp(-|v|)), where log1p(e) = e p(e) and p is the minimax
// polynomial of degree 9 on [0, 1] (relative error 0.08 roundings, 1.8 with f32 Horner steps).
// Above 20 the second term vanishes: the threshold needs no branch.
__device__ __forceinline__ float softplus(float v) {
  const float e = exp_of_minus(fabsf(v));
  float p = -3.2440247e-3f;
  p = __fmaf_rn(p, e, 1.98514592e-2f);
  p = __fmaf_rn(p, e, -5.69595285e-2f);
  p = __fmaf_rn(p, e, 1.06036544e-1f);
  p = __fmaf_rn(p, e, -1.53055921e-1f);
  p = __fmaf_rn(p, e, 1.96759388e-1f);
  p = __fmaf_rn(p, e, -2.49541342e-1f);
  p = __fmaf_rn(p, e, 3.33299637e-1f);
  p = __fmaf_rn(p, e, -4.99999017e-1f);
  p = __fmaf_rn(p, e, 1.0f);
  return __fmaf_rn(e, p, max_or_nan(v, 0.0f));
}

// z / (1 + exp(-z)). With 16-bit storage the result is rounded at 2^-9 or 2^-12, so the plain
// product z log2(e) will do (off by |z| roundings, and |z| > 20 gives nothing); f32 gets the
// compensated one.
template <class T>
__device__ __forceinline__ float silu(float z) {
  if constexpr (std::is_same_v<T, float>) {
    const float e = exp_of_minus(fabsf(z));
    const float share = __fmul_rn(z < 0 ? e : 1.0f, reciprocal_approx(__fadd_rn(1.0f, e)));
    return __fmul_rn(z, share);
  } else {
    const float e = exp2_approx(__fmul_rn(z, -log2e));
    return __fmul_rn(z, reciprocal_approx(__fadd_rn(1.0f, e)));
  }
}

// A log2(e) with A = -exp(A_log), so that a decay is one product and one ex2. Finite, so that a
// delta of zero keeps the state; a NaN stays.
__device__ __forceinline__ float scaled_A(float A_log) {
  const float A = __fmul_rn(-expf(A_log), log2e);
  return A < -FLT_MAX ? -FLT_MAX : A;
}

__device__ __forceinline__ float decay(float delta, float A) {
  return exp2_approx(__fmul_rn(delta, A));
}

// One step of one state: h = decay h + delta x B.
__device__ __forceinline__ float advance(float h, float delta, float A, float delta_x, float B) {
  return __fmaf_rn(decay(delta, A), h, __fmul_rn(delta_x, B));
}

}  // namespace mamba::cuda
