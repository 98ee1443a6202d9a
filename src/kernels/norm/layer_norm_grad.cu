// LayerNormGrad: see norm_grad.cuh. With n the normalised x and dn = dy silu(z):
//   dz = dy (n w + bias) silu'(z)     dweight = sum dn n     dbias = sum dn
//   dx = rsqrt(var + epsilon) (w dn - mean(w dn) - n mean(w dn n))
#include "detail/visit.hpp"
#include "kernels/norm/layer_norm.cuh"
#include "kernels/norm/norm_grad.cuh"

namespace mamba::cuda {

namespace {

template <class T>
struct LayerNormBack {
  struct Sums {
    typename LayerNormRows<T>::Moments moments;
    float mean;        // of w dn
    float projection;  // of w dn n
  };

  LayerNormRows<T> norm;
  const T* dy;
  T* dx;  // may be dy or x
  T* dz;  // with z
  RowPitches dy_rows, dx_rows, dz_rows;

  // normed, dn and w dn; what SiLU passes on goes to dz on the way if `store` says so.
  template <int V>
  __device__ __forceinline__ void gradients(std::int64_t row, std::int64_t c,
                                            const typename LayerNormRows<T>::Moments& moments,
                                            bool store, float (&normed)[V], float (&dn)[V],
                                            float (&weighed)[V]) const {
    float scaled[V];
    norm.template normalise<V>(row, c, moments, normed, scaled);
    load_floats<V>(dy + dy_rows.offset(row) + c, dn);
    if (norm.z != nullptr) {
      float z[V], to_z[V];
      load_floats<V>(norm.z + norm.z_rows.offset(row) + c, z);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        to_z[v] = scaled[v] * silu_grad<T>(z[v], dn[v]);
        dn[v] *= silu<T>(z[v]);
      }
      if (store) store_floats<V>(dz + dz_rows.offset(row) + c, to_z);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) weighed[v] = dn[v];
    if (norm.weight == nullptr) return;
    float weights[V];
    load_floats<V>(norm.weight + c, weights);
#pragma unroll
    for (int v = 0; v < V; ++v) weighed[v] *= weights[v];
  }

  template <int V>
  __device__ __forceinline__ Sums sums(std::int64_t row, bool inside, int lane, int lanes) const {
    const auto moments = norm.template moments<V>(row, inside, lane, lanes);
    float total[2] = {};
    for (std::int64_t c = std::int64_t{lane} * V; inside && c < norm.channels;
         c += std::int64_t{lanes} * V) {
      float normed[V], dn[V], weighed[V];
      gradients<V>(row, c, moments, false, normed, dn, weighed);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        total[0] += weighed[v];
        total[1] = fmaf(weighed[v], normed[v], total[1]);
      }
    }
    sum_over_row(total, lanes);
    const auto count = static_cast<float>(norm.channels);
    return {moments, total[0] / count, total[1] / count};
  }

  __device__ __forceinline__ void prefetch(std::int64_t row, std::int64_t c) const {
    prefetch_line(norm.x + norm.x_rows.offset(row) + c);
    prefetch_line(dy + dy_rows.offset(row) + c);
    if (norm.z != nullptr) prefetch_line(norm.z + norm.z_rows.offset(row) + c);
  }

  template <int V>
  __device__ __forceinline__ void finish(std::int64_t row, std::int64_t c, const Sums& sums,
                                         float (&added)[2][V]) const {
    float normed[V], dn[V], weighed[V];
    gradients<V>(row, c, sums.moments, true, normed, dn, weighed);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      added[0][v] = dn[v] * normed[v];
      added[1][v] = dn[v];
      weighed[v] = sums.moments.scale * (weighed[v] - sums.mean - normed[v] * sums.projection);
    }
    store_floats<V>(dx + dx_rows.offset(row) + c, weighed);
  }
};

}  // namespace

void run(const LayerNormGrad& op, Stream& stream) {
  constexpr const char* where = "layer_norm_grad";
  const OnDevice current(stream.device(), where);
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int V = 4;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    const LayerNormBack<T> back{LayerNormRows<T>(op), op.dy.data<T>(),
                                op.dx.data<T>(),      op.dz ? op.dz.data<T>() : nullptr,
                                RowPitches(op.dy),    RowPitches(op.dx),
                                RowPitches(op.dz)};
    const PutRows<2> put{{op.dweight ? op.dweight.data<float>() : nullptr,
                          op.dbias ? op.dbias.data<float>() : nullptr},
                         back.norm.channels,
                         op.accumulate};
    const std::int64_t rows = op.x.count() / back.norm.channels;
    const bool vectors = back.norm.aligned(V) && back.dy_rows.aligned(back.dy, size, V * size) &&
                         back.dx_rows.aligned(back.dx, size, V * size) &&
                         back.dz_rows.aligned(back.dz, size, V * size);
    vectors ? run_norm_grad<V>(back, rows, put, stream, where)
            : run_norm_grad<1>(back, rows, put, stream, where);
  });
}

}  // namespace mamba::cuda
