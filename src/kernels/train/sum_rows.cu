// SumRows: a column sum of the values as they are.
#include "detail/visit.hpp"
#include "kernels/gpu/column_sums.cuh"

namespace mamba::cuda {

namespace {

template <class T>
struct Values {
  const T* x;
  RowPitches rows;

  template <int V>
  __device__ __forceinline__ void add(std::int64_t row, std::int64_t column,
                                      float (&sums)[1][V]) const {
    float values[V];
    load_floats<V>(x + rows.offset(row) + column, values);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[0][v] += values[v];
  }
};

}  // namespace

void run(const SumRows& op, Stream& stream) {
  constexpr const char* where = "sum_rows";
  const OnDevice current(stream.device(), where);
  const std::int64_t channels = op.y.dim(0);
  const PutRows<1> put{{op.y.data<float>()}, channels, op.accumulate};
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = 4;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    const Values<T> values{op.x.data<T>(), RowPitches(op.x)};
    const std::int64_t rows = op.x.count() / channels;
    const bool vectors = channels % V == 0 && values.rows.aligned(values.x, size, V * size);
    vectors ? sum_columns<V>(values, rows, put, stream, where)
            : sum_columns<1>(values, rows, put, stream, where);
  });
}

}  // namespace mamba::cuda
