// GatedRmsNorm and its gradient, group by group of every row.
#include <cmath>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/visit.hpp"
#include "host/ops/row_sums.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/norm/gated_rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/norm/norm_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

namespace {

// A group of a row: what both directions read.
template <class T>
struct GatedGroup {
  const T *x, *z;
  const float* weight;  // nullptr: no norm
  std::int64_t channels;
  bool gate_first;
  float epsilon;

  // What is normed.
  HWY_INLINE F32Vec normed(std::int64_t i, std::int64_t left) const {
    const F32Vec v = load_channels(x + i, left);
    return gate_first ? hn::Mul(v, silu(d, load_channels(z + i, left))) : v;
  }
  // rsqrt(mean(normed^2) + epsilon)
  float scale() const {
    F32Vec squares = hn::Zero(d);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec v = normed(i, left);
      squares = hn::MulAdd(v, v, squares);
    });
    return 1 / std::sqrt(sum_of(squares) / static_cast<float>(channels) + epsilon);
  }

  void forward(T* y) const {
    if (weight == nullptr) return gate(y);
    const F32Vec scales = hn::Set(d, scale());
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      F32Vec v = hn::Mul(hn::Mul(normed(i, left), scales), load_channels(weight + i, left));
      if (!gate_first) v = hn::Mul(v, silu(d, load_channels(z + i, left)));
      store_channels(v, y + i, left);
    });
  }

  // dweight: sums; may be nullptr.
  void backward(const T* dy, T* dx, T* dz, float* dweight) const {
    if (weight == nullptr) return gate_backward(dy, dx, dz);
    // The gradient of what is normed and scaled, before its weight.
    const auto arriving = [&](std::int64_t i, std::int64_t left) {
      const F32Vec g = load_channels(dy + i, left);
      return gate_first ? g : hn::Mul(g, silu(d, load_channels(z + i, left)));
    };
    const float r = scale();
    const F32Vec scales = hn::Set(d, r);
    F32Vec product = hn::Zero(d);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec g = hn::Mul(arriving(i, left), load_channels(weight + i, left));
      product = hn::MulAdd(normed(i, left), g, product);
    });
    const F32Vec pull = hn::Set(d, sum_of(product) / static_cast<float>(channels) * r * r);
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec v = normed(i, left), g = arriving(i, left);
      const F32Vec w = load_channels(weight + i, left), gate = load_channels(z + i, left);
      const F32Vec x_in = load_channels(x + i, left);
      const F32Vec dv = hn::Mul(scales, hn::NegMulAdd(v, pull, hn::Mul(g, w)));
      const F32Vec slope = silu_slope(d, gate);
      if (gate_first) {
        store_channels(hn::Mul(hn::Mul(dv, x_in), slope), dz + i, left);
        store_channels(hn::Mul(dv, silu(d, gate)), dx + i, left);
      } else {
        const F32Vec y = hn::Mul(hn::Mul(x_in, scales), w);
        store_channels(hn::Mul(hn::Mul(load_channels(dy + i, left), y), slope), dz + i, left);
        store_channels(dv, dx + i, left);
      }
      // Beyond the group lies the next one's sum.
      if (dweight == nullptr) return;
      F32Vec sum = load_channels(dweight + i, left);
      sum = hn::MulAdd(g, hn::Mul(v, scales), sum);
      store_channels(sum, dweight + i, left);
    });
  }

  // Where there is no norm.
  void gate(T* y) const {
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      store_channels(hn::Mul(load_channels(x + i, left), silu(d, load_channels(z + i, left))),
                     y + i, left);
    });
  }
  void gate_backward(const T* dy, T* dx, T* dz) const {
    each_vector(channels, [&](std::int64_t i, std::int64_t left) {
      const F32Vec g = load_channels(dy + i, left), gate = load_channels(z + i, left);
      store_channels(hn::Mul(hn::Mul(g, load_channels(x + i, left)), silu_slope(d, gate)), dz + i,
                     left);
      store_channels(hn::Mul(g, silu(d, gate)), dx + i, left);
    });
  }
};

// f(group of a row, the group's first channel)
template <class T, class Op, class F>
void each_group(const Op& op, const T* x, const T* z, F f) {
  const std::int64_t size = op.x.shape().back() / op.groups;
  const float* weight = data_or_null(op.weight);
  for (std::int64_t first = 0; first < op.groups * size; first += size) {
    const float* mine = op.norm ? weight + first : nullptr;
    f(GatedGroup<T>{x + first, z + first, mine, size, op.gate_first, op.epsilon}, first);
  }
}

}  // namespace

void gated_rms_norm(const GatedRmsNorm& op, std::int64_t first, std::int64_t last) {
  const detail::ChannelRows x_rows(op.x), z_rows(op.z), y_rows(op.y);
  detail::visit(op.y.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t r = first; r < last; ++r) {
      T* y = op.y.data<T>() + y_rows.offset(r);
      each_group(op, op.x.data<T>() + x_rows.offset(r), op.z.data<T>() + z_rows.offset(r),
                 [&](const GatedGroup<T>& group, std::int64_t c) { group.forward(y + c); });
    }
  });
}

void gated_rms_norm_grad(const GatedRmsNormGrad& op, std::int64_t first, std::int64_t last,
                         float* dweight) {
  const detail::ChannelRows x_rows(op.x), z_rows(op.z), dy_rows(op.dy), dx_rows(op.dx),
      dz_rows(op.dz);
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t r = first; r < last; ++r) {
      const T* dy = op.dy.data<T>() + dy_rows.offset(r);
      T* dx = op.dx.data<T>() + dx_rows.offset(r);
      T* dz = op.dz.data<T>() + dz_rows.offset(r);
      each_group(op, op.x.data<T>() + x_rows.offset(r), op.z.data<T>() + z_rows.offset(r),
                 [&](const GatedGroup<T>& group, std::int64_t c) {
                   group.backward(dy + c, dx + c, dz + c,
                                  dweight != nullptr ? dweight + c : nullptr);
                 });
    }
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(gated_rms_norm);
HWY_EXPORT(gated_rms_norm_grad);

void run(const GatedRmsNorm& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  const int threads = row_threads(stream, rows, 2 * op.y.count());
  each_row_range(stream, threads, rows, [&](int, std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(gated_rms_norm)(op, first, last);
  });
}

void run(const GatedRmsNormGrad& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  const int threads = row_threads(stream, rows, 4 * op.x.count());
  Scratch scratch(stream);
  const RowSums sums(scratch, threads, 1, op.x.shape().back());
  each_row_range(stream, threads, rows, [&](int i, std::int64_t first, std::int64_t last) {
    HWY_DYNAMIC_DISPATCH(gated_rms_norm_grad)
    (op, first, last, op.dweight ? sums.of(i, 0) : nullptr);
  });
  sums.finish(0, op.dweight, op.accumulate);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
