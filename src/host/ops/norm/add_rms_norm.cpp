#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/norm/add_rms_norm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include <algorithm>
#include <cmath>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "host/ops/storage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// One row. x, residual, kept and weight may be nullptr.
template <class T>
struct NormRow {
  const T* x;
  const float* residual;
  float* kept;  // gets the sum; may be residual, and must be there if both operands are
  const float* weight;
  T* y;
  std::size_t channels;

  // Whole vectors are loaded and stored directly, the last part of a row through a buffer.
  template <class U>
  static F32Vec take(const U* from, std::size_t count) {
    return count == hn::Lanes(F32()) ? load(from) : load_part(from, count);
  }
  template <class U>
  static void put(F32Vec v, U* to, std::size_t count) {
    count == hn::Lanes(F32()) ? store(v, to) : store_part(v, to, count);
  }

  F32Vec sum(std::size_t i, std::size_t count) const {
    if (residual == nullptr) return take(x + i, count);
    const F32Vec before = take(residual + i, count);
    return x == nullptr ? before : hn::Add(before, take(x + i, count));
  }

  // Keeps the sum, returns the sum of its squares. Four accumulators hide the latency of the
  // additions; vector i of a row always goes to accumulator i mod 4, so the order is fixed.
  float add() const {
    const F32 d;
    const std::size_t lanes = hn::Lanes(d);
    F32Vec squares[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
    const auto step = [&](std::size_t i, std::size_t count, F32Vec& square) {
      const F32Vec v = sum(i, count);
      if (kept != nullptr) put(v, kept + i, count);
      square = hn::MulAdd(v, v, square);
    };
    std::size_t i = 0;
    for (; i + 4 * lanes <= channels; i += 4 * lanes) {
      for (std::size_t k = 0; k < 4; ++k) step(i + k * lanes, lanes, squares[k]);
    }
    for (std::size_t k = 0; i < channels; i += lanes, ++k) {
      step(i, std::min(lanes, channels - i), squares[k]);
    }
    const F32Vec total = hn::Add(hn::Add(squares[0], squares[1]), hn::Add(squares[2], squares[3]));
    return hn::GetLane(hn::SumOfLanes(d, total));
  }

  void scale(float factor) const {
    const float* from = kept != nullptr ? kept : residual;
    const std::size_t lanes = hn::Lanes(F32());
    const F32Vec factors = hn::Set(F32(), factor);
    for (std::size_t i = 0; i < channels; i += lanes) {
      const std::size_t count = std::min(lanes, channels - i);
      F32Vec v = from != nullptr ? take(from + i, count) : take(x + i, count);
      v = hn::Mul(v, factors);
      if (weight != nullptr) v = hn::Mul(v, take(weight + i, count));
      put(v, y + i, count);
    }
  }
};

template <class T>
void norm_rows(const AddRmsNorm& op, std::int64_t first, std::int64_t last) {
  const detail::ChannelRows x_rows(op.x);
  const detail::ChannelRows residual_rows(op.residual);
  const TensorView kept = op.sum ? op.sum : op.x ? op.residual : TensorView();
  const detail::ChannelRows kept_rows(kept);
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t channels = op.y.shape().back();
  for (std::int64_t r = first; r < last; ++r) {
    const NormRow<T> row{
        op.x ? op.x.data<T>() + x_rows.offset(r) : nullptr,
        op.residual ? op.residual.data<float>() + residual_rows.offset(r) : nullptr,
        kept ? kept.data<float>() + kept_rows.offset(r) : nullptr,
        op.weight ? op.weight.data<float>() : nullptr,
        op.y.data<T>() + y_rows.offset(r),
        static_cast<std::size_t>(channels)};
    const float mean = row.add() / static_cast<float>(channels);
    row.scale(1 / std::sqrt(mean + op.epsilon));
  }
}

void add_rms_norm(const AddRmsNorm& op, std::int64_t first, std::int64_t last) {
  detail::visit(op.y.dtype(),
                [&](auto type) { norm_rows<typename decltype(type)::type>(op, first, last); });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(add_rms_norm);

void run(const AddRmsNorm& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  // Waking a thread takes about 2 us; this many values take one thread 12 us (0.19 ns each).
  constexpr std::int64_t grain = std::int64_t{1} << 16;
  const auto threads = static_cast<int>(std::clamp<std::int64_t>(
      op.y.count() / grain, 1, std::min<std::int64_t>(rows, stream.threads())));
  StreamAccess::team(stream).run(threads, [&](int i) {
    HWY_DYNAMIC_DISPATCH(add_rms_norm)(op, rows * i / threads, rows * (i + 1) / threads);
  });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
