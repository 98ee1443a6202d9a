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
#include "kernels/chained.cuh"
#include "kernels/row_sums.cuh"
#include "kernels/vec.cuh"

namespace mamba::cuda {

namespace {

// At most 2 vectors to a thread while 256 threads do, then 4, then 8: up to 16384 channels in
// registers.
constexpr int most_threads(int vectors) { return vectors <= 2 ? 256 : row_block_largest; }

template <class T>
struct Norm {
  const T* x;           // may be nullptr
  float* residual;      // may be nullptr
  const float* weight;  // may be nullptr
  T* y;
  RowPitches x_rows, residual_rows, y_rows;
  std::int64_t rows;
  std::int64_t channels;
  float epsilon;
  int lanes;
};

// The sum of V channels from channel i on, kept in the residual if both operands are there.
template <int V, class T>
__device__ __forceinline__ void add(const T* x, float* residual, std::int64_t i, float (&sum)[V]) {
  if (residual == nullptr) return load_floats<V>(x + i, sum);
  load_floats<V>(residual + i, sum);
  if (x == nullptr) return;
  float added[V];
  load_floats<V>(x + i, added);
#pragma unroll
  for (int k = 0; k < V; ++k) sum[k] += added[k];
}

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
__global__ void __launch_bounds__(most_threads(kVectors)) add_rms_norm_kernel(const Norm<T> norm) {
  const int lane = static_cast<int>(threadIdx.x) % norm.lanes;
  const std::int64_t row = std::int64_t{blockIdx.x} * (static_cast<int>(blockDim.x) / norm.lanes) +
                           static_cast<int>(threadIdx.x) / norm.lanes;
  const bool inside = row < norm.rows;  // threads outside take part in the shuffles
  const T* x = norm.x == nullptr ? nullptr : norm.x + norm.x_rows.offset(row);
  float* residual =
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
  const float mean = squares[0] / static_cast<float>(channels);
  const float factor = 1 / sqrtf(mean + norm.epsilon);
  T* y = norm.y + norm.y_rows.offset(row);
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int i = (lane + j * norm.lanes) * V;
    if (!inside || i >= channels) continue;
    if (x != nullptr && residual != nullptr) store_floats<V>(residual + i, sum[j]);
    scale<V>(sum[j], factor, norm.weight, i, y);
  }
}

// A row too long for the registers of a block: read twice. A thread reads again what it wrote
// itself.
template <int V, class T>
__global__ void __launch_bounds__(row_block_largest) add_rms_norm_long_kernel(const Norm<T> norm) {
  const std::int64_t row = blockIdx.x;
  const T* x = norm.x == nullptr ? nullptr : norm.x + norm.x_rows.offset(row);
  float* residual =
      norm.residual == nullptr ? nullptr : norm.residual + norm.residual_rows.offset(row);
  const std::int64_t first = std::int64_t{threadIdx.x} * V;
  const std::int64_t stride = std::int64_t{row_block_largest} * V;
  float squares[1] = {};
#pragma unroll 1
  for (std::int64_t i = first; i < norm.channels; i += stride) {
    float sum[V];
    add<V>(x, residual, i, sum);
#pragma unroll
    for (int k = 0; k < V; ++k) squares[0] = fmaf(sum[k], sum[k], squares[0]);
    if (x != nullptr && residual != nullptr) store_floats<V>(residual + i, sum);
  }
  sum_over_row(squares, row_block_largest);
  const float mean = squares[0] / static_cast<float>(norm.channels);
  const float factor = 1 / sqrtf(mean + norm.epsilon);
  T* y = norm.y + norm.y_rows.offset(row);
#pragma unroll 1
  for (std::int64_t i = first; i < norm.channels; i += stride) {
    float sum[V];
    add<V>(residual != nullptr ? nullptr : x, residual, i, sum);
    scale<V>(sum, factor, norm.weight, i, y);
  }
}

template <int V, int kVectors, class T>
void launch_short(Norm<T> norm, cudaStream_t stream) {
  const RowBlocks spread(norm.channels, V, kVectors);
  norm.lanes = spread.lanes;
  const auto blocks = static_cast<unsigned>(divide_up(norm.rows, spread.rows()));
  launch_chained(add_rms_norm_kernel<V, kVectors, T>, blocks, spread.threads, 0, stream,
                 "add_rms_norm", norm);
}

template <int V, class T>
void launch(const Norm<T>& norm, cudaStream_t stream) {
  const std::int64_t vectors = divide_up(norm.channels, V);
  if (vectors <= 32) {
    launch_short<V, 1>(norm, stream);
  } else if (vectors <= 2 * most_threads(2)) {
    launch_short<V, 2>(norm, stream);
  } else if (vectors <= 4 * most_threads(4)) {
    launch_short<V, 4>(norm, stream);
  } else if (vectors <= 8 * most_threads(8)) {
    launch_short<V, 8>(norm, stream);
  } else {
    const auto blocks = static_cast<unsigned>(norm.rows);
    add_rms_norm_long_kernel<V><<<blocks, row_block_largest, 0, stream>>>(norm);
  }
}

}  // namespace

void run(const AddRmsNorm& op, Stream& stream) {
  const OnDevice current(stream.device(), "add_rms_norm");
  detail::visit(op.y.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    Norm<T> norm{};
    norm.x = op.x ? op.x.data<T>() : nullptr;
    norm.residual = op.residual ? op.residual.data<float>() : nullptr;
    norm.weight = op.weight ? op.weight.data<float>() : nullptr;
    norm.y = op.y.data<T>();
    norm.x_rows = RowPitches(op.x);
    norm.residual_rows = RowPitches(op.residual);
    norm.y_rows = RowPitches(op.y);
    norm.channels = op.y.shape().back();
    norm.rows = op.y.count() / norm.channels;
    norm.epsilon = op.epsilon;
    constexpr int V = 4;  // 16 bytes of the residual
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    const bool vectors = norm.channels % V == 0 && norm.x_rows.aligned(norm.x, size, V * size) &&
                         norm.y_rows.aligned(norm.y, size, V * size) &&
                         norm.residual_rows.aligned(norm.residual, 4, 16) &&
                         is_aligned(norm.weight, 0, 16);
    vectors ? launch<V>(norm, handle(stream)) : launch<1>(norm, handle(stream));
  });
  check(cudaGetLastError(), "add_rms_norm");
}

}  // namespace mamba::cuda
