// Scalar functions that kernels share, each a few instructions whose accuracy is stated. Where a
// rounding is spelled out (__fmul_rn, __fmaf_rn), every kernel gets the same bits: the compiler's
// own choice of what to fuse may differ by kernel.
#pragma once

#include <type_traits>

#include "kernels/gpu/ptx.cuh"

namespace mamba::cuda {

constexpr float log2e = 1.44269502e+0f;  // log2(e) rounded to f32
constexpr float ln2 = 6.93147182e-1f;    // ln(2) rounded to f32, and what the rounding left out
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

// ---- sigmoid and silu ---------------------------------------------------------------------------

// 1 / (1 + exp(-x)), relative error about |x| + 4 roundings. Below -88 the exponential is infinite
// and the result 0.
__device__ __forceinline__ float sigmoid_approx(float x) {
  return reciprocal_approx(__fadd_rn(1.0f, exp2_approx(__fmul_rn(x, -log2e))));
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

// silu(x) = x sigmoid(x). In 16-bit storage every kernel takes silu_approx: it is off by |x|
// roundings, but the result is rounded at 2^-9 or 2^-12, and beyond -20 nothing is left of it. In
// f32 there are three, whose bits differ:
//   silu_approx   for CausalConv: its x is a sum, and what that lost in its last rounding changes
//                 the result as much as what x log2(e) loses here
//   silu          for norms and activations, which memory bounds: there is time for a division
//   silu_of_scan  for the scan, which special functions bound: it has as few as silu_approx, and
//                 the error of x log2(e) is made good by FMAs

// -0 below -88.
__device__ __forceinline__ float silu_approx(float x) { return __fmul_rn(x, sigmoid_approx(x)); }

template <class T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x * sigmoid<float>(x);
  } else {
    return silu_approx(x);
  }
}

template <class T>
__device__ __forceinline__ float silu_of_scan(float z) {
  if constexpr (std::is_same_v<T, float>) {
    const float e = exp_of_minus(fabsf(z));
    const float share = __fmul_rn(z < 0 ? e : 1.0f, reciprocal_approx(__fadd_rn(1.0f, e)));
    return __fmul_rn(z, share);
  } else {
    return silu_approx(z);
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
    return dy * fmaf(__fmul_rn(x, s), 1 - s, s);
  }
}

}  // namespace mamba::cuda
