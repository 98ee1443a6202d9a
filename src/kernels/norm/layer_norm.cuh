// What LayerNorm and its gradient share: the operands that both have, and a row's mean and
// variance.
#pragma once

#include "kernels/gpu/math.cuh"
#include "kernels/gpu/row_sums.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

template <class T>
struct LayerNormRows {
  struct Moments {
    float mean;
    float scale;  // rsqrt(variance + epsilon)
  };

  const T* x;
  const float* weight;  // may be nullptr, as may bias and z
  const float* bias;
  const T* z;
  RowPitches x_rows, z_rows;
  std::int64_t channels;
  float epsilon;

  template <class Op>
  explicit LayerNormRows(const Op& op)
      : x(op.x.template data<T>()),
        weight(op.weight ? op.weight.template data<float>() : nullptr),
        bias(op.bias ? op.bias.template data<float>() : nullptr),
        z(op.z ? op.z.template data<T>() : nullptr),
        x_rows(op.x),
        z_rows(op.z),
        channels(op.x.shape().back()),
        epsilon(op.epsilon) {}

  bool aligned(int V) const {
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    return channels % V == 0 && x_rows.aligned(x, size, V * size) &&
           z_rows.aligned(z, size, V * size) && is_aligned(weight, 0, V * 4) &&
           is_aligned(bias, 0, V * 4);
  }

  // First the mean, then the squares of what is left of it: x may be far from zero.
  template <int V>
  __device__ __forceinline__ Moments moments(std::int64_t row, bool inside, int lane,
                                             int lanes) const {
    const std::int64_t end = inside ? channels : 0;
    const T* from = x + (inside ? x_rows.offset(row) : 0);
    const std::int64_t stride = std::int64_t{lanes} * V;
    float total[1] = {};
    float values[V];
    for (std::int64_t c = std::int64_t{lane} * V; c < end; c += stride) {
      load_floats<V>(from + c, values);
#pragma unroll
      for (int v = 0; v < V; ++v) total[0] += values[v];
    }
    sum_over_row(total, lanes);
    const auto count = static_cast<float>(channels);
    const float mean = total[0] / count;
    total[0] = 0;
    for (std::int64_t c = std::int64_t{lane} * V; c < end; c += stride) {
      load_floats<V>(from + c, values);
#pragma unroll
      for (int v = 0; v < V; ++v) total[0] = fmaf(values[v] - mean, values[v] - mean, total[0]);
    }
    sum_over_row(total, lanes);
    return {mean, 1 / sqrtf(total[0] / count + epsilon)};
  }

  // The normalised values, and those with weight and bias.
  template <int V>
  __device__ __forceinline__ void normalise(std::int64_t row, std::int64_t c,
                                            const Moments& moments, float (&normed)[V],
                                            float (&scaled)[V]) const {
    load_floats<V>(x + x_rows.offset(row) + c, normed);
#pragma unroll
    for (int v = 0; v < V; ++v) scaled[v] = normed[v] = (normed[v] - moments.mean) * moments.scale;
    float operand[V];
    if (weight != nullptr) {
      load_floats<V>(weight + c, operand);
#pragma unroll
      for (int v = 0; v < V; ++v) scaled[v] *= operand[v];
    }
    if (bias != nullptr) {
      load_floats<V>(bias + c, operand);
#pragma unroll
      for (int v = 0; v < V; ++v) scaled[v] += operand[v];
    }
  }
};

}  // namespace mamba::cuda
