// Parts of matrices in the registers of a warp, as mma.m16n8k16 wants them: see mma() in ptx.cuh,
// whose g and q stand for lane / 4 and lane % 4 here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

// Two 16-bit elements of a register, the lower one first.
template <class T>
__device__ __forceinline__ std::uint32_t pack_pair(float low, float high) {
  const float pair[2] = {low, high};
  return Packed<T, 2>::pack(pair).words;
}
template <class T>
__device__ __forceinline__ void unpack_pair(std::uint32_t pair, float (&to)[2]) {
  Packed<T, 2>{pair}.unpack(to);
}

// Bit 15 or 31 is set for a lower or upper element that is infinite or NaN.
template <class T>
__device__ __forceinline__ std::uint32_t not_finite(std::uint32_t pair) {
  constexpr std::uint32_t exponent = std::is_same_v<T, bf16> ? 0x7f807f80u : 0x7c007c00u;
  constexpr std::uint32_t lowest = std::is_same_v<T, bf16> ? 0x00800080u : 0x04000400u;
  return ((pair & exponent) + lowest) & 0x80008000u;
}
// pair 0 + sum, which stays zero as long as all are finite.
template <class T>
__device__ __forceinline__ std::uint32_t add_none_of(std::uint32_t pair, std::uint32_t sum) {
  using Pair = std::conditional_t<std::is_same_v<T, bf16>, __nv_bfloat162, __half2>;
  const std::uint32_t zero = 0;
  Pair factors[3];
  memcpy(&factors[0], &pair, 4);
  memcpy(&factors[1], &zero, 4);
  memcpy(&factors[2], &sum, 4);
  const Pair result = __hfma2(factors[0], factors[1], factors[2]);
  memcpy(&sum, &result, 4);
  return sum;
}

// Where in a matrix of `pitch` elements a row the lane's row of four 8 x 8 matrices lies, which
// load_matrices() takes: the second matrix below the first and then the two to their right, or
// first to the right and then below. In bytes.
__device__ __forceinline__ unsigned place_down(int lane, int pitch) {
  return static_cast<unsigned>(2 * (lane % 16 * pitch + lane / 16 * 8));
}
__device__ __forceinline__ unsigned place_right(int lane, int pitch) {
  return static_cast<unsigned>(2 * ((lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8));
}

// Four 8 x 8 matrices of a warp, transposed, to where place_right() says.
__device__ __forceinline__ void put_transposed(unsigned to, int pitch, int lane,
                                               const std::uint32_t (&from)[4]) {
  if constexpr (compiled_for >= sm_90) {
    store_matrices_transposed(to + place_right(lane, pitch), from);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int row = lane / 4 + k / 2 * 8, column = k % 2 * 8 + lane % 4 * 2;
      store_shared(to + static_cast<unsigned>(2 * (row * pitch + column)),
                   transpose_matrix(from[k]));
    }
  }
}

}  // namespace mamba::cuda
