// LayerNorm with its gate, and the gradients of both norms, row by row.
#include <cmath>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/visit.hpp"
#include "host/ops/row_sums.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/norm/layer_norm.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/norm/norm_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

namespace {

struct Moments {
  float mean;
  float scale;  // rsqrt(variance + epsilon)
};

// Two passes: the variance as a difference of squares would lose what a large mean takes.
template <class T>
Moments moments(const T* x, std::int64_t channels, float epsilon) {
  const auto n = static_cast<float>(channels);
  F32Vec sum = hn::Zero(d);
  each_vector(channels, [&](std::int64_t i, std::int64_t left) {
    sum = hn::Add(sum, load_channels(x + i, left));
  });
  const float mean = sum_of(sum) / n;
  F32Vec squares = hn::Zero(d);
  each_vector(channels, [&](std::int64_t i, std::int64_t left) {
    const F32Vec v = within(hn::Sub(load_channels(x + i, left), hn::Set(d, mean)), left);
    squares = hn::MulAdd(v, v, squares);
  });
  return {mean, 1 / std::sqrt(sum_of(squares) / n + epsilon)};
}

}  // namespace

template <class T>
void layer_norm_rows(const LayerNorm& op, std::int64_t first, std::int64_t last) {
  const detail::ChannelRows x_rows(op.x), z_rows(op.z), y_rows(op.y);
  const std::int64_t channels = op.y.shape().back();
  const float* weight = data_or_null(op.weight);
  const float* bias = data_or_null(op.bias);
  for (std::int64_t r = first; r < last; ++r) {
    const T* x = op.x.data<T>() + x_rows.offset(r);
    const T* z = op.z ? op.z.data<T>() + z_rows.offset(r) : nullptr;
    T* y = op.y.data<T>() + y_rows.offset(r);
    const Moments m = moments(x, channels, op.epsilon);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec centred = hn::Sub(load_channels(x + i, left), hn::Set(d, m.mean));
      F32Vec v = hn::Mul(centred, hn::Set(d, m.scale));
      v = hn::MulAdd(v, load_or(weight, i, left, 1), load_or(bias, i, left, 0));
      if (z != nullptr) v = hn::Mul(v, silu(d, load_channels(z + i, left)));
      store_channels(v, y + i, left);
    });
  }
}

void layer_norm(const LayerNorm& op, std::int64_t first, std::int64_t last) {
  detail::visit(op.y.dtype(), [&](auto type) {
    layer_norm_rows<typename decltype(type)::type>(op, first, last);
  });
}

// One row of LayerNormGrad. z, weight, bias, dz, dweight and dbias may be nullptr.
template <class T>
struct LayerNormGradRow {
  const T *x, *z, *dy;
  const float *weight, *bias;
  T *dx, *dz;
  float *dweight, *dbias;  // sums, whole vectors
  std::int64_t channels;

  // The gradient of what the gate multiplies.
  HWY_INLINE F32Vec ungated(std::int64_t i, std::int64_t left) const {
    const F32Vec v = load_channels(dy + i, left);
    return z == nullptr ? v : hn::Mul(v, silu(d, load_channels(z + i, left)));
  }

  void run(float epsilon) const {
    const Moments m = moments(x, channels, epsilon);
    const F32Vec mean = hn::Set(d, m.mean), scale = hn::Set(d, m.scale);
    const auto normal = [&](std::int64_t i, std::int64_t left) {
      return within(hn::Mul(hn::Sub(load_channels(x + i, left), mean), scale), left);
    };
    F32Vec sum = hn::Zero(d), product = hn::Zero(d);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec g = hn::Mul(ungated(i, left), load_or(weight, i, left, 1));
      sum = hn::Add(sum, g);
      product = hn::MulAdd(g, normal(i, left), product);
    });
    const auto n = static_cast<float>(channels);
    const F32Vec mean_g = hn::Set(d, sum_of(sum) / n);
    const F32Vec mean_product = hn::Set(d, sum_of(product) / n);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec x_hat = normal(i, left);
      const F32Vec dn = ungated(i, left);
      const F32Vec w = load_or(weight, i, left, 1);
      if (dz != nullptr) {
        const F32Vec n_value = hn::MulAdd(x_hat, w, load_or(bias, i, left, 0));
        const F32Vec slope = silu_slope(d, load_channels(z + i, left));
        store_channels(hn::Mul(hn::Mul(load_channels(dy + i, left), n_value), slope), dz + i, left);
      }
      if (dweight != nullptr) add_to(dweight + i, hn::Mul(dn, x_hat));
      if (dbias != nullptr) add_to(dbias + i, dn);
      const F32Vec g = hn::Sub(hn::Mul(dn, w), mean_g);
      store_channels(hn::Mul(scale, hn::NegMulAdd(x_hat, mean_product, g)), dx + i, left);
    });
  }
};

void layer_norm_grad(const LayerNormGrad& op, std::int64_t first, std::int64_t last, float* dweight,
                     float* dbias) {
  const detail::ChannelRows x_rows(op.x), z_rows(op.z), dy_rows(op.dy), dx_rows(op.dx),
      dz_rows(op.dz);
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t r = first; r < last; ++r) {
      LayerNormGradRow<T> row{};
      row.x = op.x.data<T>() + x_rows.offset(r);
      row.dy = op.dy.data<T>() + dy_rows.offset(r);
      row.dx = op.dx.data<T>() + dx_rows.offset(r);
      if (op.z) {
        row.z = op.z.data<T>() + z_rows.offset(r);
        row.dz = op.dz.data<T>() + dz_rows.offset(r);
      }
      row.weight = data_or_null(op.weight);
      row.bias = data_or_null(op.bias);
      row.dweight = dweight;
      row.dbias = dbias;
      row.channels = op.x.shape().back();
      row.run(op.epsilon);
    }
  });
}

// dsum of one row, to dresidual and dx, either of which may be nullptr like weight and dweight.
template <class S, class T>
struct RmsNormGradRow {
  const S* sum;
  const T* dy;
  const float* weight;
  float* dresidual;
  T* dx;
  float* dweight;
  std::int64_t channels;

  void run(float epsilon) const {
    F32Vec squares = hn::Zero(d), product = hn::Zero(d);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec s = load_channels(sum + i, left);
      squares = hn::MulAdd(s, s, squares);
      product =
          hn::MulAdd(hn::Mul(s, load_channels(dy + i, left)), load_or(weight, i, left, 1), product);
    });
    const auto n = static_cast<float>(channels);
    const float scale = 1 / std::sqrt(sum_of(squares) / n + epsilon);
    const F32Vec scales = hn::Set(d, scale);
    const F32Vec pull = hn::Set(d, sum_of(product) / n * scale * scale);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec s = load_channels(sum + i, left);
      const F32Vec g = load_channels(dy + i, left);
      if (dweight != nullptr) add_to(dweight + i, hn::Mul(g, hn::Mul(s, scales)));
      const F32Vec wg = hn::Mul(g, load_or(weight, i, left, 1));
      F32Vec dsum = hn::Mul(scales, hn::NegMulAdd(s, pull, wg));
      if (dresidual != nullptr) {
        dsum = hn::Add(dsum, load_channels(dresidual + i, left));
        store_channels(dsum, dresidual + i, left);
      }
      if (dx != nullptr) store_channels(dsum, dx + i, left);
    });
  }
};

template <class S, class T>
void rms_norm_grad_rows(const AddRmsNormGrad& op, std::int64_t first, std::int64_t last,
                        float* dweight) {
  const detail::ChannelRows sum_rows(op.sum), dy_rows(op.dy), residual_rows(op.dresidual),
      dx_rows(op.dx);
  for (std::int64_t r = first; r < last; ++r) {
    RmsNormGradRow<S, T> row{};
    row.sum = op.sum.data<S>() + sum_rows.offset(r);
    row.dy = op.dy.data<T>() + dy_rows.offset(r);
    row.weight = data_or_null(op.weight);
    if (op.dresidual) row.dresidual = op.dresidual.data<float>() + residual_rows.offset(r);
    if (op.dx) row.dx = op.dx.data<T>() + dx_rows.offset(r);
    row.dweight = dweight;
    row.channels = op.dy.shape().back();
    row.run(op.epsilon);
  }
}

void rms_norm_grad(const AddRmsNormGrad& op, std::int64_t first, std::int64_t last,
                   float* dweight) {
  detail::visit(op.dy.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (op.sum.dtype() == DType::f32) return rms_norm_grad_rows<float, T>(op, first, last, dweight);
    rms_norm_grad_rows<T, T>(op, first, last, dweight);
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(layer_norm);
HWY_EXPORT(layer_norm_grad);
HWY_EXPORT(rms_norm_grad);

void run(const LayerNorm& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  const int threads = row_threads(stream, rows, op.y.count());
  each_row_range(stream, threads, rows, [&](int, std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(layer_norm)(op, first, last);
  });
}

void run(const LayerNormGrad& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  const int threads = row_threads(stream, rows, 2 * op.x.count());
  Scratch scratch(stream);
  const RowSums sums(scratch, threads, 2, op.x.shape().back());
  each_row_range(stream, threads, rows, [&](int i, std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(layer_norm_grad)
    (op, first, last, op.dweight ? sums.of(i, 0) : nullptr, op.dbias ? sums.of(i, 1) : nullptr);
  });
  sums.finish(0, op.dweight, op.accumulate);
  sums.finish(1, op.dbias, op.accumulate);
}

void run(const AddRmsNormGrad& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.dy).count();
  const int threads = row_threads(stream, rows, op.dy.count());
  Scratch scratch(stream);
  const RowSums sums(scratch, threads, 1, op.dy.shape().back());
  each_row_range(stream, threads, rows, [&](int i, std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(rms_norm_grad)(op, first, last, op.dweight ? sums.of(i, 0) : nullptr);
  });
  sums.finish(0, op.dweight, op.accumulate);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
