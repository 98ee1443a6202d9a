// The storage types inside kernels: to and from float, and several elements per memory access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <mamba/dtype.hpp>

namespace mamba::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(std::uint32_t{value.bits} << 16);
}
__device__ __forceinline__ float to_float(f16 value) {
  return __half2float(__ushort_as_half(value.bits));
}

// from_float<T>(value) rounds to nearest even.
template <class T>
__device__ __forceinline__ T from_float(float value) {
  if constexpr (sizeof(T) == 4) {
    return value;
  } else {
    T result;
    if constexpr (std::is_same_v<T, bf16>) {
      result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
    } else {
      result.bits = __half_as_ushort(__float2half_rn(value));
    }
    return result;
  }
}

// N consecutive elements that move as one access of N * sizeof(T) bytes: 2 (a lone 16-bit element),
// 4, 8 or 16. The address must be a multiple of that.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& value) {
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

// N elements as floats, and back.
template <int N, class T>
__device__ __forceinline__ void load_floats(const T* from, float (&to)[N]) {
  const Vec<T, N> packed = load_vec<N>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(packed.at[i]);
}

template <int N, class T>
__device__ __forceinline__ void store_floats(T* to, const float (&from)[N]) {
  Vec<T, N> packed;
#pragma unroll
  for (int i = 0; i < N; ++i) packed.at[i] = from_float<T>(from[i]);
  store_vec(to, packed);
}

// V neighbouring elements as they lie in memory: 2, 4, 8 or 16 bytes that move at once. Whole
// words, and not an array of V elements, because the compiler keeps each of those in a register of
// its own.
template <class T, int V>
struct Packed {
  static constexpr int bytes = static_cast<int>(sizeof(T)) * V;
  using Words = std::conditional_t<
      bytes == 16, uint4,
      std::conditional_t<bytes == 8, uint2,
                         std::conditional_t<bytes == 4, std::uint32_t, std::uint16_t>>>;
  Words words;

  static __device__ __forceinline__ Packed load(const T* from) {
    return {*reinterpret_cast<const Words*>(from)};
  }
  __device__ __forceinline__ void store(T* to) const { *reinterpret_cast<Words*>(to) = words; }

  __device__ __forceinline__ void unpack(float (&to)[V]) const {
    if constexpr (sizeof(T) == 2 && V > 1) {
      std::uint32_t pairs[V / 2];
      memcpy(pairs, &words, bytes);
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        if constexpr (std::is_same_v<T, bf16>) {
          to[2 * i] = __uint_as_float(pairs[i] << 16);
          to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
        } else {
          __half2 pair;
          memcpy(&pair, &pairs[i], 4);
          to[2 * i] = __low2float(pair);
          to[2 * i + 1] = __high2float(pair);
        }
      }
    } else {
      T elements[V];
      memcpy(elements, &words, bytes);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = to_float(elements[i]);
    }
  }

  static __device__ __forceinline__ Packed pack(const float (&from)[V]) {
    Packed result;
    if constexpr (sizeof(T) == 2 && V > 1) {
      std::uint32_t pairs[V / 2];
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        if constexpr (std::is_same_v<T, bf16>) {
          const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
          memcpy(&pairs[i], &pair, 4);
        } else {
          const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
          memcpy(&pairs[i], &pair, 4);
        }
      }
      memcpy(&result.words, pairs, bytes);
    } else {
      T elements[V];
#pragma unroll
      for (int i = 0; i < V; ++i) elements[i] = from_float<T>(from[i]);
      memcpy(&result.words, elements, bytes);
    }
    return result;
  }
};

// On the host: whether every step of `pitch` elements from `base` lands on a multiple of `bytes`.
inline bool is_aligned(const void* base, std::int64_t pitch_bytes, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(base) % static_cast<std::uintptr_t>(bytes) == 0 &&
         pitch_bytes % bytes == 0;
}

}  // namespace mamba::cuda
