// What every kernel that norms rows shares: the operands, and how a row is spread over threads,
// which fixes the order of its sum and so its bits.
#pragma once

#include <mamba/ops.hpp>

#include "kernels/gpu/row_sums.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

constexpr int norm_vector = 4;  // elements, where all operands allow: 16 bytes of the residual

// At most 2 vectors to a thread while 256 threads do, then 4, then 8: up to 16384 channels in
// registers.
constexpr int norm_threads(int vectors) { return vectors <= 2 ? 256 : row_block_largest; }

// Vectors to a thread; 0: the row is too long for the registers of a block.
inline int norm_vectors_per_thread(std::int64_t vectors) {
  if (vectors <= 32) return 1;
  for (const int each : {2, 4, 8}) {
    if (vectors <= std::int64_t{each} * norm_threads(each)) return each;
  }
  return 0;
}

template <class T>
struct Norm {
  const T* x;             // may be nullptr
  const float* residual;  // may be nullptr
  float* sum;             // may be nullptr, and may be residual
  const float* weight;    // may be nullptr
  T* y;
  RowPitches x_rows, residual_rows, sum_rows, y_rows;
  std::int64_t rows;
  std::int64_t channels;
  float epsilon;
  int lanes;     // threads of a row: thread l has the vectors l, l + lanes, ...
  bool vectors;  // of norm_vector elements

  explicit Norm(const AddRmsNorm& op)
      : x(op.x ? op.x.data<T>() : nullptr),
        residual(op.residual ? op.residual.data<float>() : nullptr),
        sum(nullptr),
        weight(op.weight ? op.weight.data<float>() : nullptr),
        y(op.y.data<T>()),
        x_rows(op.x),
        residual_rows(op.residual),
        y_rows(op.y),
        rows(op.y.count() / op.y.shape().back()),
        channels(op.y.shape().back()),
        epsilon(op.epsilon),
        lanes(0) {
    const TensorView kept = op.sum ? op.sum : op.x ? op.residual : TensorView();
    if (kept) sum = kept.data<float>();
    sum_rows = RowPitches(kept);
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    vectors = channels % norm_vector == 0 && x_rows.aligned(x, size, norm_vector * size) &&
              y_rows.aligned(y, size, norm_vector * size) &&
              residual_rows.aligned(residual, 4, 16) && sum_rows.aligned(sum, 4, 16) &&
              is_aligned(weight, 0, 16);
  }
};

// The sum of V channels from channel i on.
template <int V, class T>
__device__ __forceinline__ void add(const T* x, const float* residual, std::int64_t i,
                                    float (&sum)[V]) {
  if (residual == nullptr) return load_floats<V>(x + i, sum);
  load_floats<V>(residual + i, sum);
  if (x == nullptr) return;
  float added[V];
  load_floats<V>(x + i, added);
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] += added[k];
}

__device__ __forceinline__ float norm_factor(float squares, int channels, float epsilon) {
  const float mean = squares / static_cast<float>(channels);
  return 1 / sqrtf(mean + epsilon);
}

}  // namespace mamba::cuda
