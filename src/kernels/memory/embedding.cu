// y[b, t, :] = table[ids[b, t], :]: rows copied as they are, or widened to f32.
#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

constexpr int block_threads = 128;

template <class T, class Y>
struct Gather {
  const std::int32_t* ids;  // [rows]
  RowPitches id_rows;
  const T* table;  // [vocab, width]
  std::int64_t vocab, table_pitch;
  Y* y;  // [rows, width]
  RowPitches y_rows;
  std::int64_t rows, width;
  int lanes;  // threads per row
  int* bad_id;
};

// `lanes` threads copy one row, V elements at a time.
template <int V, class T, class Y>
__global__ void __launch_bounds__(block_threads) embedding_kernel(const Gather<T, Y> g) {
  const int rows_per_block = block_threads / g.lanes;
  const int lane = static_cast<int>(threadIdx.x) % g.lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * rows_per_block + static_cast<int>(threadIdx.x) / g.lanes;
  let_next_begin();
  wait_for_previous();
  if (row >= g.rows) return;
  const std::int64_t id = g.ids[g.id_rows.offset(row)];
  const bool bad = id < 0 || id >= g.vocab;
  if (bad && lane == 0) *g.bad_id = 1;
  Y* to = g.y + g.y_rows.offset(row);
  const T* from = g.table + (bad ? 0 : id * g.table_pitch);
  for (std::int64_t i = lane * V; i < g.width; i += g.lanes * V) {
    Vec<Y, V> out;
    if (bad) {
#pragma unroll
      for (int k = 0; k < V; ++k) out.at[k] = from_float<Y>(nanf(""));
    } else {
      const Vec<T, V> in = load_vec<V>(from + i);
      if constexpr (std::is_same_v<T, Y>) {
        out = in;
      } else {
#pragma unroll
        for (int k = 0; k < V; ++k) out.at[k] = to_float(in.at[k]);
      }
    }
    store_vec(to + i, out);
  }
}

template <class T, class Y>
void gather(const Embedding& op, Stream& stream) {
  constexpr int V = 16 / static_cast<int>(sizeof(Y));
  constexpr auto t_size = static_cast<std::int64_t>(sizeof(T));
  constexpr auto y_size = static_cast<std::int64_t>(sizeof(Y));
  Gather<T, Y> g{};
  g.ids = op.ids.data<std::int32_t>();
  g.id_rows = RowPitches::of_elements(op.ids);
  g.table = op.table.data<T>();
  g.vocab = op.table.dim(0);
  g.table_pitch = op.table.row_pitch();
  g.y = op.y.data<Y>();
  g.y_rows = RowPitches(op.y);
  g.rows = op.ids.count();
  g.width = op.table.dim(1);
  g.bad_id = StreamAccess::flag(stream, BadValue::token_id);
  const bool vectors = g.width % V == 0 && g.y_rows.aligned(g.y, y_size, V * y_size) &&
                       is_aligned(g.table, g.table_pitch * t_size, V * t_size);
  g.lanes = lanes_per_row(vectors ? g.width / V : g.width, block_threads);
  const auto blocks = static_cast<unsigned>(divide_up(g.rows, block_threads / g.lanes));
  if (vectors) {
    launch_chained(embedding_kernel<V, T, Y>, blocks, block_threads, 0, stream, "embedding", g);
  } else {
    launch_chained(embedding_kernel<1, T, Y>, blocks, block_threads, 0, stream, "embedding", g);
  }
}

}  // namespace

void run(const Embedding& op, Stream& stream) {
  if (op.y.count() == 0) return;
  const OnDevice current(stream.device(), "embedding");
  detail::visit(op.table.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (op.y.dtype() == DType::f32) return gather<T, float>(op, stream);
    gather<T, T>(op, stream);
  });
}

}  // namespace mamba::cuda
