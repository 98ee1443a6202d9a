// CrossEntropy, row by row: the largest logit, the sum of exponentials, the gradient.
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/visit.hpp"
#include "host/ops/row_sums.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/train/cross_entropy.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// The next vector of a row of logits; minus infinity beyond it.
template <class T>
HWY_INLINE F32Vec load_logits(const T* from, std::int64_t left) {
  const F32 d;
  const F32Vec v = load_channels(from, left);
  if (left >= vector_channels()) return v;
  const auto lanes = hn::FirstN(d, static_cast<std::size_t>(left));
  return hn::IfThenElse(lanes, v, hn::Set(d, -std::numeric_limits<float>::infinity()));
}

template <class T>
struct SoftmaxRow {
  const T* logits;
  std::int64_t vocab;
  float most, sum;  // the largest logit; the sum of exp(logit - most)

  SoftmaxRow(const T* from, std::int64_t count) : logits(from), vocab(count) {
    const F32 d;
    F32Vec largest = hn::Set(d, -std::numeric_limits<float>::infinity());
    each([&](std::int64_t i, std::int64_t left) {
      largest = hn::Max(largest, load_logits(logits + i, left));
    });
    most = hn::GetLane(hn::MaxOfLanes(d, largest));
    F32Vec total = hn::Zero(d);
    each([&](std::int64_t i, std::int64_t left) { total = hn::Add(total, power(i, left)); });
    sum = hn::GetLane(hn::SumOfLanes(d, total));
  }

  template <class F>
  void each(F f) const {
    for (std::int64_t i = 0; i < vocab; i += vector_channels()) f(i, vocab - i);
  }
  HWY_INLINE F32Vec power(std::int64_t i, std::int64_t left) const {
    const F32 d;
    return exp(d, hn::Sub(load_logits(logits + i, left), hn::Set(d, most)));
  }

  // factor softmax(logits), of type G; `to` may be `logits`.
  template <class G>
  void store(float factor, G* to) const {
    const F32Vec scale = hn::Set(F32(), factor / sum);
    each([&](std::int64_t i, std::int64_t left) {
      store_channels(hn::Mul(power(i, left), scale), to + i, left);
    });
  }
};

template <class T, class G>
void loss_rows(const CrossEntropy& op, std::int64_t first, std::int64_t last) {
  const detail::ChannelRows rows(op.logits), gradient_rows(op.dlogits);
  const std::int64_t vocab = op.logits.shape().back();
  const auto* targets = op.targets.data<std::int32_t>();
  for (std::int64_t r = first; r < last; ++r) {
    G* dlogits = op.dlogits ? op.dlogits.data<G>() + gradient_rows.offset(r) : nullptr;
    float& loss = op.loss.data<float>()[r];
    const std::int32_t target = targets[r];
    if (target < 0) {
      loss = 0;
      if (dlogits != nullptr) std::fill_n(dlogits, vocab, G(0.0f));
      continue;
    }
    const SoftmaxRow<T> row(op.logits.data<T>() + rows.offset(r), vocab);
    const float behind = row.most - static_cast<float>(row.logits[target]);
    loss = behind + std::log(row.sum);
    if (dlogits == nullptr) continue;
    // Rounded once, also where the row is overwritten.
    const float p = std::exp(-behind) / row.sum;
    row.store(op.scale, dlogits);
    dlogits[target] = G(op.scale * (p - 1));
  }
}

void cross_entropy(const CrossEntropy& op, std::int64_t first, std::int64_t last) {
  detail::visit(op.logits.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    detail::visit(op.dlogits ? op.dlogits.dtype() : DType::f32, [&](auto gradient_type) {
      loss_rows<T, typename decltype(gradient_type)::type>(op, first, last);
    });
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(cross_entropy);

void run(const CrossEntropy& op, Stream& stream) {
  const std::int64_t rows = op.loss.count();
  const std::int64_t vocab = op.logits.shape().back();
  const auto* targets = op.targets.data<std::int32_t>();
  for (std::int64_t r = 0; r < rows; ++r) {
    if (targets[r] >= vocab) {
      throw ArgumentError("cross_entropy", "targets", fmt::format("ids up to {}", vocab - 1),
                          fmt::format("{}", targets[r]));
    }
  }
  each_row_range(stream, row_threads(stream, rows, 4 * op.logits.count()), rows,
                 [&](int, std::int64_t first, std::int64_t last) {
                   HWY_DYNAMIC_DISPATCH(cross_entropy)(op, first, last);
                 });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
