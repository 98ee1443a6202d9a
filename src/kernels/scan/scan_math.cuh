// The arithmetic of the selective scan, which every plan shares so that they agree to the bit: a
// decay or a delta is computed by the same instructions in the one-step kernel and in the long
// ones, and sums over states follow one tree whoever holds the states. Every rounding is spelled
// out (__fmul_rn, __fmaf_rn), because the compiler's own choice of what to fuse may differ by
// kernel; so it is in softplus and silu_of_scan of math.cuh.
//
// Special functions (ex2, rcp) start at 16 lanes a clock and SM against 128 for FMAs: with 16
// states they are what bounds the scan, so the logarithm in softplus is a polynomial.
#pragma once

#include <cfloat>

#include "kernels/gpu/math.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

// A log2(e) with A = -exp(A_log), so that a decay is one product and one ex2. Finite, so that a
// delta of zero keeps the state; a NaN stays.
__device__ __forceinline__ float scaled_A(float A_log) {
  const float A = __fmul_rn(-expf(A_log), log2e);
  return A < -FLT_MAX ? -FLT_MAX : A;
}

// The same of an A that is given.
__device__ __forceinline__ float scaled_given_A(float given) {
  const float A = __fmul_rn(given, log2e);
  const float above = A < -FLT_MAX ? -FLT_MAX : A;
  return above > FLT_MAX ? FLT_MAX : above;
}

// How A and delta come from the operands of a scan. Kernels that do not take states that may grow
// (detail::may_grow) have A_log and softplus, and need not look.
struct ScanForm {
  bool A_is_log, softplus;

  // A log2(e) from an element of A_log or A.
  template <bool Grows>
  __device__ __forceinline__ float scaled(float element) const {
    return !Grows || A_is_log ? scaled_A(element) : scaled_given_A(element);
  }
  // delta from dt + dt_bias.
  template <bool Grows>
  __device__ __forceinline__ float delta(float v) const {
    return !Grows || softplus ? mamba::cuda::softplus(v) : v;
  }
};

__device__ __forceinline__ float decay(float delta, float A) {
  return exp2_approx(__fmul_rn(delta, A));
}

// One step of one state: h = decay h + delta x B.
__device__ __forceinline__ float advance(float h, float delta, float A, float delta_x, float B) {
  return __fmaf_rn(decay(delta, A), h, __fmul_rn(delta_x, B));
}

}  // namespace mamba::cuda
