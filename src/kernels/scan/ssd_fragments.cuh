// Parts of matrices in the registers of a warp, as mma.m16n8k16 wants them: see mma() in ptx.cuh,
// whose g and q stand for lane / 4 and lane % 4 here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

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

// Where in a matrix of `pitch` elements a row the lane's row of four 8 x 8 matrices lies, which
// load_matrices() takes: the second matrix below the first and then the two to their right, or
// first to the right and then below.
struct FragmentPlace {
  int down, right;  // bytes

  __device__ __forceinline__ FragmentPlace(int lane, int pitch) {
    const int row = lane % 8 * pitch, below = 8 * pitch;
    down = 2 * (row + lane / 8 % 2 * below + lane / 16 * 8);
    right = 2 * (row + lane / 8 % 2 * 8 + lane / 16 * below);
  }
};

}  // namespace mamba::cuda
