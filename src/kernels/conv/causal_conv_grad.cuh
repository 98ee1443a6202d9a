// What the kernels of CausalConvGrad share: the operands as plain pointers, and where the sums go.
#pragma once

#include "kernels/conv/causal_conv.cuh"

namespace mamba::cuda::conv {

template <class T>
struct GradOperands {
  Operands<T> of;  // of the forward call: x, weight, bias, initial, reset and the sizes
  const T* dy;     // [batch, time, channels]
  std::int64_t dy_row, dy_step;
  const T* dfinal;  // [batch, channels, past]; may be nullptr
  T* dinitial;      // the same, but not the same memory; may be nullptr
  T* dx;            // [batch, time, channels]
  std::int64_t dx_row, dx_step;
};

// Where the sums of every tap and, last, of the bias go: dweight [channels, width], dbias
// [channels]; both may be nullptr. Sums are numbered [width + 1, channels].
struct PutFilter {
  float *dweight, *dbias;
  std::int64_t channels;
  int width;
  bool accumulate;

  __device__ void operator()(std::int64_t i, float sum) const {
    const std::int64_t k = i / channels;
    const std::int64_t c = i % channels;
    float* to = k < width ? dweight : dbias;
    if (to == nullptr) return;
    if (k < width) {
      to += c * width + k;
    } else {
      to += c;
    }
    *to = accumulate ? *to + sum : sum;
  }
};

}  // namespace mamba::cuda::conv
