// AddRmsNorm: each row is read once, kept in registers between its sum of squares and its scaling,
// and written once. `lanes` threads share a row: a part of a warp for the small norms of dt, B and
// C (4 rows in a block of 128 at 128 channels), a whole block for the model's width. How a row is
// spread, and so the order of its sum, depends on channels and alignment alone.
//
// Measured on an H200, bf16 with residual: 16384 x 2560 133 us (118 at the rate of a device copy),
// 16384 x 768 41 us (35). Loading all of a row before the first addition costs more registers than
// it gains: 529 instead of 504 us at 16384 x 8192.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/norm/add_rms_norm.cuh"

namespace mamba::cuda {

namespace {

template <int V, class T>
__device__ __forceinline__ void scale(const float (&sum)[V], float factor, const float* weight,
                                      std::int64_t i, T* y) {
  float out[V];
#pragma unroll
  for (int k = 0; k < V; ++k) out[k] = sum[k] * factor;
  if (weight != nullptr) {
    float weights[V];
    load_floats<V>(weight + i, weights);
#pragma unroll
    for (int k = 0; k < V; ++k) out[k] *= weights[k];
  }
  store_floats<V>(y + i, out);
}

// Thread l of a row has the vectors l, l + lanes, ...: kVectors of them at most.
template <int V, int kVectors, class T>
__global__ void __launch_bounds__(norm_threads(kVectors)) add_rms_norm_kernel(const Norm<T> norm) {
  const int lane = static_cast<int>(threadIdx.x) % norm.lanes;
  const std::int64_t row = std::int64_t{blockIdx.x} * (static_cast<int>(blockDim.x) / norm.lanes) +
                           static_cast<int>(threadIdx.x) / norm.lanes;
  const bool inside = row < norm.rows;  // threads outside take part in the shuffles
  const T* x = norm.x == nullptr ? nullptr : norm.x + norm.x_rows.offset(row);
  const float* residual =
      norm.residual == nullptr ? nullptr : norm.residual + norm.residual_rows.offset(row);
  const auto channels = static_cast<int>(norm.channels);
  let_next_begin();
  wait_for_previous();
  float sum[kVectors][V] = {};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = (lane + j * norm.lanes) * V;
    if (inside && i < channels) add<V>(x, residual, i, sum[j]);
  }
  float squares[1] = {};
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
#pragma unroll
    for (int k = 0; k < V; ++k) squares[0] = fmaf(sum[j][k], sum[j][k], squares[0]);
  }
  sum_over_row(squares, norm.lanes);
  const float factor = norm_factor(squares[0], channels, norm.epsilon);
  float* kept = norm.sum == nullptr ? nullptr : norm.sum + norm.sum_rows.offset(row);
  T* y = norm.y + norm.y_rows.offset(row);
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = (lane + j * norm.lanes) * V;
    if (!inside || i >= channels) continue;
    if (kept != nullptr) store_floats<V>(kept + i, sum[j]);
    scale<V>(sum[j], factor, norm.weight, i, y);
  }
}

// A row too long for the registers of a block: read twice. A thread reads again what it wrote
// itself.
template <int V, class T>
__global__ void __launch_bounds__(row_block_largest) add_rms_norm_long_kernel(const Norm<T> norm) {
  const std::int64_t row = blockIdx.x;
  const T* x = norm.x == nullptr ? nullptr : norm.x + norm.x_rows.offset(row);
  const float* residual =
      norm.residual == nullptr ? nullptr : norm.residual + norm.residual_rows.offset(row);
  float* kept = norm.sum == nullptr ? nullptr : norm.sum + norm.sum_rows.offset(row);
  const std::int64_t first = std::int64_t{threadIdx.x} * V;
  const std::int64_t stride = std::int64_t{row_block_largest} * V;
  float squares[1] = {};
#pragma unroll 1
  for (std::int64_t i = first; i < norm.channels; i += stride) {
    float sum[V];
    add<V>(x, residual, i, sum);
#pragma unroll
    for (int k = 0; k < V; ++k) squares[0] = fmaf(sum[k], sum[k], squares[0]);
    if (kept != nullptr) store_floats<V>(kept + i, sum);
  }
  sum_over_row(squares, row_block_largest);
  const float factor = norm_factor(squares[0], static_cast<int>(norm.channels), norm.epsilon);
  T* y = norm.y + norm.y_rows.offset(row);
#pragma unroll 1
  for (std::int64_t i = first; i < norm.channels; i += stride) {
    float sum[V];
    kept != nullptr ? add<V, T>(nullptr, kept, i, sum) : add<V>(x, residual, i, sum);
    scale<V>(sum, factor, norm.weight, i, y);
  }
}

template <int V, int kVectors, class T>
void launch_short(Norm<T> norm, Stream& stream) {
  const RowBlocks spread(norm.channels, V, kVectors);
  norm.lanes = spread.lanes;
  const auto blocks = static_cast<unsigned>(divide_up(norm.rows, spread.rows()));
  launch_chained(add_rms_norm_kernel<V, kVectors, T>, blocks, spread.threads, 0, stream,
                 "add_rms_norm", norm);
}

template <int V, class T>
void launch_rows(const Norm<T>& norm, Stream& stream) {
  switch (norm_vectors_per_thread(divide_up(norm.channels, V))) {
    case 1:
      return launch_short<V, 1>(norm, stream);
    case 2:
      return launch_short<V, 2>(norm, stream);
    case 4:
      return launch_short<V, 4>(norm, stream);
    case 8:
      return launch_short<V, 8>(norm, stream);
    default:
      const auto blocks = static_cast<unsigned>(norm.rows);
      launch(add_rms_norm_long_kernel<V, T>, blocks, row_block_largest, 0, stream, "add_rms_norm",
             norm);
  }
}

}  // namespace

void run(const AddRmsNorm& op, Stream& stream) {
  const OnDevice current(stream.device(), "add_rms_norm");
  detail::visit(op.y.dtype(), [&](auto type) {
    const Norm<typename decltype(type)::type> norm(op);
    norm.vectors ? launch_rows<norm_vector>(norm, stream) : launch_rows<1>(norm, stream);
  });
}

}  // namespace mamba::cuda
