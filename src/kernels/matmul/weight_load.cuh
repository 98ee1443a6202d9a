// How the kernels read a product's weight. They are templates of a Load, which alone knows how the
// weight is stored:
//   T           what x, the bias and a 16-bit y are stored in
//   Stored      what one element of the weight is stored in
//   N           elements of the weight in 16 bytes
//   Eight       what a lane gives the tensor cores at a time, as it is stored
//   data        the first element, to which kernels add places and pitches
//   value       one element as a number
//   unpack      several elements, which came in one access, as numbers
//   fragment    eight elements as the tensor cores take them, where T has 16 bits
//   scaled      a sum of products with a weight row, times what its elements have in common
// A weight that is transposed is stored as x is.
#pragma once

#include <mamba/ops.hpp>

#include "detail/visit.hpp"
#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

// A weight that is stored as x is.
template <class Activation>
struct DenseLoad {
  using T = Activation;
  using Stored = Activation;
  using Eight = Packed<Stored, 8>;
  static constexpr int N = 16 / static_cast<int>(sizeof(Stored));

  const Stored* data;

  explicit DenseLoad(const ConstTensorView& weight)
      : data(static_cast<const Stored*>(weight.data())) {}

  static __device__ __forceinline__ float value(Stored element) { return to_float(element); }
  template <int V>
  static __device__ __forceinline__ void unpack(const Packed<Stored, V>& packed, float (&to)[V]) {
    packed.unpack(to);
  }
  static __device__ __forceinline__ uint4 fragment(const Eight& eight) { return eight.words; }
  __device__ __forceinline__ float scaled(std::int64_t, float sum) const { return sum; }
};

// f(Type<Load>{}) with the Load of the product's weight: the only switch over how it is stored.
template <class F>
decltype(auto) visit_load(const Matmul& op, F&& f) {
  return detail::visit(op.x.dtype(), [&](auto type) -> decltype(auto) {
    return f(detail::Type<DenseLoad<typename decltype(type)::type>>{});
  });
}

// Elements that nobody reads again.
template <int V, class Stored>
__device__ __forceinline__ Packed<Stored, V> load_once(const Stored* from) {
  if constexpr (sizeof(Stored) * V < 16) {
    return Packed<Stored, V>::load(from);
  } else {
    return {load_past_l1(from)};
  }
}
// What a lane gives the tensor cores, by cp.async to the first bytes of a place of 16 in shared
// memory: `valid` bytes, and zeros for the rest of them.
template <class Load>
__device__ __forceinline__ void copy_eight(uint4* to, const void* from, int valid) {
  constexpr int bytes = sizeof(typename Load::Eight);
  if constexpr (bytes == 16) {
    copy_16_bytes(to, from, valid);
  } else {
    copy_bytes<bytes>(to, from, valid);
  }
}

// N elements of x, which N of a weight row are multiplied with, in as few accesses as they take.
template <class T, int N>
struct Factors {
  static constexpr int V = N * sizeof(T) > 16 ? 16 / static_cast<int>(sizeof(T)) : N;
  Packed<T, V> pieces[N / V];

  static __device__ __forceinline__ Factors load(const T* from) {
    Factors result;
#pragma unroll
    for (int i = 0; i < N / V; ++i) result.pieces[i] = Packed<T, V>::load(from + i * V);
    return result;
  }
  __device__ __forceinline__ void unpack(float (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < N / V; ++i) pieces[i].unpack(reinterpret_cast<float(&)[V]>(to[i * V]));
  }
};

}  // namespace mamba::cuda
