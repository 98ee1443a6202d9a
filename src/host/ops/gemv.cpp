#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/gemv.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include "detail/visit.hpp"
#include "host/ops/gemv.hpp"
#include "host/ops/storage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// `outs` output rows for `rows` rows of x at once: rows x outs independent sums hide the latency of
// the additions, and every weight is loaded and widened once.
template <int rows, int outs, class T>
HWY_INLINE void dot(const Gemv& gemv, const T* weight, float* sums) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  F32Vec sum[outs][rows];
  for (auto& row : sum) {
    for (auto& one : row) one = hn::Zero(d);
  }
  const auto add = [&](std::int64_t i, auto load_weight) {
    F32Vec w[outs];
    for (int o = 0; o < outs; ++o) w[o] = load_weight(weight + o * gemv.weight_pitch + i);
    for (int r = 0; r < rows; ++r) {
      const F32Vec x = load(gemv.x + r * gemv.x_pitch + i);
      for (int o = 0; o < outs; ++o) sum[o][r] = hn::MulAdd(w[o], x, sum[o][r]);
    }
  };
  std::int64_t i = 0;
  for (; i + lanes <= gemv.in; i += lanes) add(i, [](const T* from) { return load(from); });
  if (i < gemv.in) {
    const auto rest = static_cast<std::size_t>(gemv.in - i);
    add(i, [rest](const T* from) { return load_part(from, rest); });
  }
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < outs; ++o) {
      sums[r * gemv.sums_pitch + o] = hn::GetLane(hn::SumOfLanes(d, sum[o][r]));
    }
  }
}

template <int rows, class T>
void dot_range(const Gemv& gemv, const T* weight, std::int64_t first, std::int64_t last) {
  constexpr int outs = rows <= 4 ? 4 : 2;  // 16 sums at most: they stay in registers
  std::int64_t o = first;
  for (; o + outs <= last; o += outs) {
    dot<rows, outs>(gemv, weight + o * gemv.weight_pitch, gemv.sums + o);
  }
  for (; o < last; ++o) dot<rows, 1>(gemv, weight + o * gemv.weight_pitch, gemv.sums + o);
}

void gemv_range(const Gemv& gemv, std::int64_t first, std::int64_t last) {
  detail::visit(gemv.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* weight = static_cast<const T*>(gemv.weight);
    switch (gemv.rows) {
      case 1:
        return dot_range<1>(gemv, weight, first, last);
      case 2:
        return dot_range<2>(gemv, weight, first, last);
      case 4:
        return dot_range<4>(gemv, weight, first, last);
      default:
        return dot_range<8>(gemv, weight, first, last);
    }
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(gemv_range);

void run(const Gemv& gemv, std::int64_t first, std::int64_t last) {
  HWY_DYNAMIC_DISPATCH(gemv_range)(gemv, first, last);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
