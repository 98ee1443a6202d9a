// LayerNorm: a row is read for its mean, for its variance and to be written; twice from the cache.
#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/norm/layer_norm.cuh"

namespace mamba::cuda {

namespace {

template <int V, class T>
__global__ void __launch_bounds__(row_block_largest)
    layer_norm_kernel(const LayerNormRows<T> norm, std::int64_t rows, int lanes, T* y,
                      const RowPitches y_rows) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * (blockDim.x / lanes) + static_cast<int>(threadIdx.x) / lanes;
  const bool inside = row < rows;  // threads outside take part in the sums
  const auto moments = norm.template moments<V>(row, inside, lane, lanes);
  if (!inside) return;
  for (std::int64_t c = std::int64_t{lane} * V; c < norm.channels; c += std::int64_t{lanes} * V) {
    float normed[V], out[V];
    norm.template normalise<V>(row, c, moments, normed, out);
    if (norm.z != nullptr) {
      float z[V];
      load_floats<V>(norm.z + norm.z_rows.offset(row) + c, z);
#pragma unroll
      for (int v = 0; v < V; ++v) out[v] *= silu<T>(z[v]);
    }
    store_floats<V>(y + y_rows.offset(row) + c, out);
  }
}

template <int V, class T>
void launch_rows(const LayerNormRows<T>& norm, const LayerNorm& op, Stream& stream) {
  const RowBlocks spread(norm.channels, V, 2);
  const std::int64_t rows = op.y.count() / norm.channels;
  const auto blocks = static_cast<unsigned>(divide_up(rows, spread.rows()));
  launch(layer_norm_kernel<V, T>, blocks, spread.threads, 0, stream, "layer_norm", norm, rows,
         spread.lanes, op.y.data<T>(), RowPitches(op.y));
}

}  // namespace

void run(const LayerNorm& op, Stream& stream) {
  const OnDevice current(stream.device(), "layer_norm");
  detail::visit(op.y.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = 4;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    const LayerNormRows<T> norm(op);
    const bool vectors =
        norm.aligned(V) && RowPitches(op.y).aligned(op.y.data<T>(), size, V * size);
    vectors ? launch_rows<V>(norm, op, stream) : launch_rows<1>(norm, op, stream);
  });
}

}  // namespace mamba::cuda
