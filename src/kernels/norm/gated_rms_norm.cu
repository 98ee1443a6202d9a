// GatedRmsNorm and its gradient: the rows of a group have their sums taken as those of the other
// norms.
#include "detail/visit.hpp"
#include "kernels/gpu/math.cuh"
#include "kernels/norm/norm_grad.cuh"

namespace mamba::cuda {

namespace {

// The operands of both directions, of one group.
template <class T>
struct GatedRows {
  const T *x, *z;
  const float* weight;
  RowPitches x_rows, z_rows;
  std::int64_t channels;
  bool gate_first;
  float epsilon;

  // The same operands of the group that begins with a channel.
  __host__ __device__ GatedRows at(std::int64_t first) const {
    GatedRows group = *this;
    group.x += first;
    group.z += first;
    group.weight += first;
    return group;
  }
  // What is normed, and the gate before its SiLU.
  template <int V>
  __device__ __forceinline__ void load(std::int64_t r, std::int64_t c, float (&normed)[V],
                                       float (&gate)[V]) const {
    load_floats<V>(x + x_rows.offset(r) + c, normed);
    load_floats<V>(z + z_rows.offset(r) + c, gate);
    if (!gate_first) return;
#pragma unroll
    for (int v = 0; v < V; ++v) normed[v] *= silu<T>(gate[v]);
  }
  // rsqrt(mean(normed^2) + epsilon), by all threads of the block.
  template <int V>
  __device__ __forceinline__ float scale(std::int64_t r, bool inside, int lane, int lanes) const {
    float squares[1] = {};
    for (std::int64_t c = std::int64_t{lane} * V; inside && c < channels;
         c += std::int64_t{lanes} * V) {
      float normed[V], gate[V];
      load<V>(r, c, normed, gate);
#pragma unroll
      for (int v = 0; v < V; ++v) squares[0] = fmaf(normed[v], normed[v], squares[0]);
    }
    sum_over_row(squares, lanes);
    return 1 / sqrtf(squares[0] / static_cast<float>(channels) + epsilon);
  }
};

// Grid: for so many rows at once, a block for each group.
template <int V, class T>
__global__ void __launch_bounds__(row_block_largest)
    gated_rms_norm_kernel(const GatedRows<T> first_group, unsigned groups, std::int64_t rows,
                          int lanes, T* y, const RowPitches y_rows) {
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t row = std::int64_t{blockIdx.x / groups} * (blockDim.x / lanes) +
                           static_cast<int>(threadIdx.x) / lanes;
  const std::int64_t first = blockIdx.x % groups * first_group.channels;
  const GatedRows<T> norm = first_group.at(first);
  const bool inside = row < rows;  // threads outside take part in the sums
  const float scale = norm.template scale<V>(row, inside, lane, lanes);
  if (!inside) return;
  T* to = y + y_rows.offset(row) + first;
  for (std::int64_t c = std::int64_t{lane} * V; c < norm.channels; c += std::int64_t{lanes} * V) {
    float out[V], gate[V], weights[V];
    norm.template load<V>(row, c, out, gate);
    load_floats<V>(norm.weight + c, weights);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out[v] *= scale * weights[v];
      if (!norm.gate_first) out[v] *= silu<T>(gate[v]);
    }
    store_floats<V>(to + c, out);
  }
}

// Of one group, see norm_grad.cuh.
template <class T>
struct GatedBack {
  struct Sums {
    float scale;
    float pull;  // mean of normed w g, times scale^2
  };

  GatedRows<T> norm;
  const T* dy;
  T* dx;  // may be dy or x
  T* dz;
  RowPitches dy_rows, dx_rows, dz_rows;

  // What is normed, the gate, the gradient before the weight and with it.
  template <int V>
  __device__ __forceinline__ void gradients(std::int64_t row, std::int64_t c, float (&normed)[V],
                                            float (&gate)[V], float (&given)[V],
                                            float (&weighed)[V]) const {
    norm.template load<V>(row, c, normed, gate);
    load_floats<V>(dy + dy_rows.offset(row) + c, given);
    float weights[V];
    load_floats<V>(norm.weight + c, weights);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (!norm.gate_first) given[v] *= silu<T>(gate[v]);
      weighed[v] = given[v] * weights[v];
    }
  }

  template <int V>
  __device__ __forceinline__ Sums sums(std::int64_t row, bool inside, int lane, int lanes) const {
    const float scale = norm.template scale<V>(row, inside, lane, lanes);
    float total[1] = {};
    for (std::int64_t c = std::int64_t{lane} * V; inside && c < norm.channels;
         c += std::int64_t{lanes} * V) {
      float normed[V], gate[V], given[V], weighed[V];
      gradients<V>(row, c, normed, gate, given, weighed);
#pragma unroll
      for (int v = 0; v < V; ++v) total[0] = fmaf(weighed[v], normed[v], total[0]);
    }
    sum_over_row(total, lanes);
    return {scale, total[0] / static_cast<float>(norm.channels) * scale * scale};
  }

  __device__ __forceinline__ void prefetch(std::int64_t row, std::int64_t c) const {
    prefetch_line(norm.x + norm.x_rows.offset(row) + c);
    prefetch_line(norm.z + norm.z_rows.offset(row) + c);
    prefetch_line(dy + dy_rows.offset(row) + c);
  }

  template <int V>
  __device__ __forceinline__ void finish(std::int64_t row, std::int64_t c, const Sums& sums,
                                         float (&added)[1][V]) const {
    float normed[V], gate[V], given[V], weighed[V], to_z[V];
    gradients<V>(row, c, normed, gate, given, weighed);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      added[0][v] = given[v] * normed[v] * sums.scale;
      weighed[v] = sums.scale * (weighed[v] - normed[v] * sums.pull);
    }
    // The slope of SiLU takes what the gate multiplied, and its gradient.
    if (norm.gate_first) {
      load_floats<V>(norm.x + norm.x_rows.offset(row) + c, to_z);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to_z[v] = silu_grad<T>(gate[v], weighed[v] * to_z[v]);
        weighed[v] *= silu<T>(gate[v]);
      }
    } else {
      load_floats<V>(dy + dy_rows.offset(row) + c, to_z);
      load_floats<V>(norm.weight + c, given);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to_z[v] = silu_grad<T>(gate[v], to_z[v] * normed[v] * sums.scale * given[v]);
      }
    }
    store_floats<V>(dz + dz_rows.offset(row) + c, to_z);
    store_floats<V>(dx + dx_rows.offset(row) + c, weighed);
  }
};

// Where there is no norm: y, or dx and dz, element by element.
template <class T>
struct Gate {
  const T *x, *z;
  const T* dy;  // nullptr: forward
  T* out;       // y, or dx, which may be dy or x
  T* dz;
  RowPitches x_rows, z_rows, dy_rows, out_rows, dz_rows;
  std::int64_t rows, channels;

  bool aligned(int V) const {
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    return channels % V == 0 && x_rows.aligned(x, size, V * size) &&
           z_rows.aligned(z, size, V * size) && dy_rows.aligned(dy, size, V * size) &&
           out_rows.aligned(out, size, V * size) && dz_rows.aligned(dz, size, V * size);
  }
};

constexpr int gate_threads = 256;

template <int V, class T>
__global__ void __launch_bounds__(gate_threads) gate_kernel(const Gate<T> op) {
  const std::int64_t per_row = op.channels / V;
  const std::int64_t stride = std::int64_t{gridDim.x} * gate_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * gate_threads + threadIdx.x;
       i < op.rows * per_row; i += stride) {
    const std::int64_t row = i / per_row;
    const std::int64_t c = i % per_row * V;
    float out[V], gate[V];
    load_floats<V>(op.x + op.x_rows.offset(row) + c, out);
    load_floats<V>(op.z + op.z_rows.offset(row) + c, gate);
    if (op.dy != nullptr) {
      float given[V], to_z[V];
      load_floats<V>(op.dy + op.dy_rows.offset(row) + c, given);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to_z[v] = silu_grad<T>(gate[v], given[v] * out[v]);
        out[v] = given[v];
      }
      store_floats<V>(op.dz + op.dz_rows.offset(row) + c, to_z);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) out[v] *= silu<T>(gate[v]);
    store_floats<V>(op.out + op.out_rows.offset(row) + c, out);
  }
}

template <int V, class T>
void launch_gate(const Gate<T>& op, const char* where, Stream& stream) {
  constexpr std::int64_t most_blocks = 1 << 16;
  const std::int64_t blocks = divide_up(op.rows * (op.channels / V), gate_threads);
  if (blocks == 0) return;
  launch(gate_kernel<V, T>, static_cast<unsigned>(std::min(blocks, most_blocks)), gate_threads, 0,
         stream, where, op);
}

template <class T>
void run_gate(const Gate<T>& op, const char* where, Stream& stream) {
  constexpr int V = 16 / static_cast<int>(sizeof(T));
  op.aligned(V) ? launch_gate<V>(op, where, stream) : launch_gate<1>(op, where, stream);
}

// Of the first group.
template <class T, class Op>
GatedRows<T> operands(const Op& op) {
  return {op.x.template data<T>(),
          op.z.template data<T>(),
          op.weight.template data<float>(),
          RowPitches(op.x),
          RowPitches(op.z),
          op.x.shape().back() / op.groups,
          op.gate_first,
          op.epsilon};
}

// Whether groups of a row can be taken in vectors of V.
template <int V, class T>
bool aligned(const GatedRows<T>& norm) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(T));
  return norm.channels % V == 0 && norm.x_rows.aligned(norm.x, size, V * size) &&
         norm.z_rows.aligned(norm.z, size, V * size) && is_aligned(norm.weight, 0, V * 4);
}

template <int V, class T>
void launch_rows(const GatedRows<T>& norm, const GatedRmsNorm& op, Stream& stream) {
  const RowBlocks spread(norm.channels, V, 2);
  const std::int64_t rows = op.y.count() / op.y.shape().back();
  const auto blocks = static_cast<unsigned>(divide_up(rows, spread.rows()) * op.groups);
  launch(gated_rms_norm_kernel<V, T>, blocks, spread.threads, 0, stream, "gated_rms_norm", norm,
         static_cast<unsigned>(op.groups), rows, spread.lanes, op.y.data<T>(), RowPitches(op.y));
}

constexpr int vector = 4;

}  // namespace

void run(const GatedRmsNorm& op, Stream& stream) {
  const OnDevice current(stream.device(), "gated_rms_norm");
  detail::visit(op.y.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    if (!op.norm) {
      const std::int64_t channels = op.y.shape().back();
      return run_gate(Gate<T>{op.x.data<T>(),
                              op.z.data<T>(),
                              nullptr,
                              op.y.data<T>(),
                              nullptr,
                              RowPitches(op.x),
                              RowPitches(op.z),
                              {},
                              RowPitches(op.y),
                              {},
                              op.y.count() / channels,
                              channels},
                      "gated_rms_norm", stream);
    }
    const GatedRows<T> norm = operands<T>(op);
    const bool vectors =
        aligned<vector>(norm) && RowPitches(op.y).aligned(op.y.data<T>(), size, vector * size);
    vectors ? launch_rows<vector>(norm, op, stream) : launch_rows<1>(norm, op, stream);
  });
}

void run(const GatedRmsNormGrad& op, Stream& stream) {
  constexpr const char* where = "gated_rms_norm_grad";
  const OnDevice current(stream.device(), where);
  const std::int64_t channels = op.x.shape().back() / op.groups;
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    if (!op.norm) {
      const std::int64_t all = op.x.shape().back();
      return run_gate(
          Gate<T>{op.x.data<T>(), op.z.data<T>(), op.dy.data<T>(), op.dx.data<T>(), op.dz.data<T>(),
                  RowPitches(op.x), RowPitches(op.z), RowPitches(op.dy), RowPitches(op.dx),
                  RowPitches(op.dz), op.x.count() / all, all},
          where, stream);
    }
    for (std::int64_t first = 0; first < op.x.shape().back(); first += channels) {
      const GatedBack<T> back{operands<T>(op).at(first), op.dy.data<T>() + first,
                              op.dx.data<T>() + first,   op.dz.data<T>() + first,
                              RowPitches(op.dy),         RowPitches(op.dx),
                              RowPitches(op.dz)};
      const PutRows<1> put{
          {op.dweight ? op.dweight.data<float>() + first : nullptr}, channels, op.accumulate};
      const std::int64_t rows = op.x.count() / op.x.shape().back();
      const bool vectors = aligned<vector>(back.norm) &&
                           back.dy_rows.aligned(back.dy, size, vector * size) &&
                           back.dx_rows.aligned(back.dx, size, vector * size) &&
                           back.dz_rows.aligned(back.dz, size, vector * size);
      vectors ? run_norm_grad<vector>(back, rows, put, stream, where)
              : run_norm_grad<1>(back, rows, put, stream, where);
    }
  });
}

}  // namespace mamba::cuda
