// AddRmsNormGrad: see norm_grad.cuh.
#include "detail/visit.hpp"
#include "kernels/norm/norm_grad.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "add_rms_norm_grad";

// S is the type of the sum that was normalised: f32 or T.
template <class S, class T>
struct RmsNorm {
  struct Sums {
    float scale;       // r = rsqrt(mean(sum^2) + epsilon)
    float correction;  // r^3 mean(sum w dy)
  };

  const S* sum;
  const float* weight;  // may be nullptr
  const T* dy;
  float* dresidual;  // may be nullptr
  T* dx;             // may be nullptr; may be dy
  RowPitches sum_rows, dy_rows, dresidual_rows, dx_rows;
  std::int64_t channels;
  float epsilon;

  // w dy
  template <int V>
  __device__ __forceinline__ void weigh(std::int64_t c, const float (&dy_values)[V],
                                        float (&to)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = dy_values[v];
    if (weight == nullptr) return;
    float weights[V];
    load_floats<V>(weight + c, weights);
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] *= weights[v];
  }

  template <int V>
  __device__ __forceinline__ Sums sums(std::int64_t row, bool inside, int lane, int lanes) const {
    float total[2] = {};  // of sum^2, of sum w dy
    if (inside) {
      const S* s = sum + sum_rows.offset(row);
      const T* d = dy + dy_rows.offset(row);
#pragma unroll 2
      for (std::int64_t c = std::int64_t{lane} * V; c < channels; c += std::int64_t{lanes} * V) {
        float values[V], gradient[V], weighed[V];
        load_floats<V>(s + c, values);
        load_floats<V>(d + c, gradient);
        weigh<V>(c, gradient, weighed);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          total[0] = fmaf(values[v], values[v], total[0]);
          total[1] = fmaf(values[v], weighed[v], total[1]);
        }
      }
    }
    sum_over_row(total, lanes);
    const auto count = static_cast<float>(channels);
    const float scale = 1 / sqrtf(total[0] / count + epsilon);
    return {scale, scale * scale * scale * (total[1] / count)};
  }

  __device__ __forceinline__ void prefetch(std::int64_t row, std::int64_t c) const {
    prefetch_line(sum + sum_rows.offset(row) + c);
    prefetch_line(dy + dy_rows.offset(row) + c);
    if (dresidual != nullptr) prefetch_line(dresidual + dresidual_rows.offset(row) + c);
  }

  template <int V>
  __device__ __forceinline__ void finish(std::int64_t row, std::int64_t c, const Sums& sums,
                                         float (&added)[1][V]) const {
    float values[V], gradient[V], dsum[V];
    load_floats<V>(sum + sum_rows.offset(row) + c, values);
    load_floats<V>(dy + dy_rows.offset(row) + c, gradient);
    weigh<V>(c, gradient, dsum);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      added[0][v] = gradient[v] * values[v] * sums.scale;
      dsum[v] = fmaf(sums.scale, dsum[v], -sums.correction * values[v]);
    }
    if (dresidual != nullptr) {
      float* to = dresidual + dresidual_rows.offset(row) + c;
      float before[V];
      load_floats<V>(to, before);
#pragma unroll
      for (int v = 0; v < V; ++v) dsum[v] += before[v];
      store_floats<V>(to, dsum);
    }
    if (dx != nullptr) store_floats<V>(dx + dx_rows.offset(row) + c, dsum);
  }
};

template <class S, class T>
void run_typed(const AddRmsNormGrad& op, Stream& stream) {
  RmsNorm<S, T> norm{};
  norm.sum = op.sum.data<S>();
  norm.weight = op.weight ? op.weight.data<float>() : nullptr;
  norm.dy = op.dy.data<T>();
  norm.dresidual = op.dresidual ? op.dresidual.data<float>() : nullptr;
  norm.dx = op.dx ? op.dx.data<T>() : nullptr;
  norm.sum_rows = RowPitches(op.sum);
  norm.dy_rows = RowPitches(op.dy);
  norm.dresidual_rows = RowPitches(op.dresidual);
  norm.dx_rows = RowPitches(op.dx);
  norm.channels = op.dy.shape().back();
  norm.epsilon = op.epsilon;
  const PutRows<1> put{
      {op.dweight ? op.dweight.data<float>() : nullptr}, norm.channels, op.accumulate};
  const std::int64_t rows = op.dy.count() / norm.channels;
  constexpr int V = 4;  // 16 bytes of the residual
  constexpr auto size = static_cast<std::int64_t>(sizeof(T));
  constexpr auto sum_size = static_cast<std::int64_t>(sizeof(S));
  const bool vectors =
      norm.channels % V == 0 && norm.sum_rows.aligned(norm.sum, sum_size, V * sum_size) &&
      norm.dy_rows.aligned(norm.dy, size, V * size) &&
      norm.dx_rows.aligned(norm.dx, size, V * size) &&
      norm.dresidual_rows.aligned(norm.dresidual, 4, 16) && is_aligned(norm.weight, 0, 16);
  vectors ? run_norm_grad<V>(norm, rows, put, stream, where)
          : run_norm_grad<1>(norm, rows, put, stream, where);
}

}  // namespace

void run(const AddRmsNormGrad& op, Stream& stream) {
  const OnDevice current(stream.device(), where);
  detail::visit(op.dy.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (op.sum.dtype() == DType::f32) return run_typed<float, T>(op, stream);
    run_typed<T, T>(op, stream);
  });
}

}  // namespace mamba::cuda
