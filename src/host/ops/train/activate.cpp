// Activate and ActivateGrad, row by row.
#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/visit.hpp"
#include "host/ops/row_sums.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/train/activate.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

void activate(const Activate& op, std::int64_t first, std::int64_t last) {
  const F32 d;
  const detail::ChannelRows x_rows(op.x), y_rows(op.y);
  const std::int64_t channels = op.x.shape().back();
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t r = first; r < last; ++r) {
      const T* x = op.x.data<T>() + x_rows.offset(r);
      T* y = op.y.data<T>() + y_rows.offset(r);
      for (std::int64_t i = 0; i < channels; i += vector_channels()) {
        const F32Vec v = load_channels(x + i, channels - i);
        const F32Vec value = op.function == Activation::relu ? at_least(d, v, 0.0f) : silu(d, v);
        store_channels(value, y + i, channels - i);
      }
    }
  });
}

void activate_grad(const ActivateGrad& op, std::int64_t first, std::int64_t last) {
  const F32 d;
  const detail::ChannelRows x_rows(op.x), dy_rows(op.dy), dx_rows(op.dx);
  const std::int64_t channels = op.x.shape().back();
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    for (std::int64_t r = first; r < last; ++r) {
      const T* x = op.x.data<T>() + x_rows.offset(r);
      const T* dy = op.dy.data<T>() + dy_rows.offset(r);
      T* dx = op.dx.data<T>() + dx_rows.offset(r);
      for (std::int64_t i = 0; i < channels; i += vector_channels()) {
        const F32Vec v = load_channels(x + i, channels - i);
        const F32Vec g = load_channels(dy + i, channels - i);
        const F32Vec product = op.function == Activation::relu
                                   ? hn::IfThenElseZero(hn::Gt(v, hn::Zero(d)), g)
                                   : hn::Mul(g, silu_slope(d, v));
        store_channels(product, dx + i, channels - i);
      }
    }
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(activate);
HWY_EXPORT(activate_grad);

void run(const Activate& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  each_row_range(stream, row_threads(stream, rows, op.x.count()), rows,
                 [&](int, std::int64_t first, std::int64_t last) {
                   HWY_DYNAMIC_DISPATCH(activate)(op, first, last);
                 });
}

void run(const ActivateGrad& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  each_row_range(stream, row_threads(stream, rows, op.x.count()), rows,
                 [&](int, std::int64_t first, std::int64_t last) {
                   HWY_DYNAMIC_DISPATCH(activate_grad)(op, first, last);
                 });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
