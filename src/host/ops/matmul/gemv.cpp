#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/matmul/gemv.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include "host/ops/matmul/factor-inl.h"
#include "host/ops/matmul/gemv.hpp"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// One output for `rows` rows of x: every weight is loaded and widened once. Outputs are taken one
// after the other and not several at once, so that the weights are read from first to last as one
// stream: on two Zen 4 cores that runs at the speed of a plain read (28 of 29 GB/s on one core),
// two rows side by side at 11 and four at 12, with or without software prefetch, which a single
// stream does not need either. Even and odd vectors have sums of their own: a bf16 row of 1536
// would wait for its additions.
template <int rows, class Row>
HWY_INLINE void dot(const Gemv& gemv, const Row& weight, float* sums) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  F32Vec even[rows];
  F32Vec odd[rows];
  for (int r = 0; r < rows; ++r) even[r] = odd[r] = hn::Zero(d);
  const auto add = [&](F32Vec* sum, F32Vec w, std::int64_t i) {
    for (int r = 0; r < rows; ++r) {
      sum[r] = hn::MulAdd(w, load(gemv.x + r * gemv.x_pitch + i), sum[r]);
    }
  };
  std::int64_t i = 0;
  for (; i + 2 * lanes <= gemv.in; i += 2 * lanes) {
    add(even, weight.lanes(i), i);
    add(odd, weight.lanes(i + lanes), i + lanes);
  }
  if (i + lanes <= gemv.in) {
    add(even, weight.lanes(i), i);
    i += lanes;
  }
  if (i < gemv.in) add(odd, weight.part(i, static_cast<std::size_t>(gemv.in - i)), i);
  for (int r = 0; r < rows; ++r) {
    sums[r * gemv.sums_pitch] = hn::GetLane(hn::SumOfLanes(d, hn::Add(even[r], odd[r])));
  }
}

template <int rows, class Row>
void dot_range(const Gemv& gemv, std::int64_t first, std::int64_t last) {
  // A copy, so that the compiler sees that no store of a sum changes it and that it has one batch.
  Factor weight = *gemv.weight;
  weight.rows.batch = 1;
  for (std::int64_t o = first; o < last; ++o) dot<rows>(gemv, Row(weight, o), gemv.sums + o);
}

void gemv_range(const Gemv& gemv, std::int64_t first, std::int64_t last) {
  visit_rows(*gemv.weight, [&](auto type) {
    using Row = typename decltype(type)::type;
    switch (gemv.rows) {
      case 1:
        return dot_range<1, Row>(gemv, first, last);
      case 2:
        return dot_range<2, Row>(gemv, first, last);
      case 4:
        return dot_range<4, Row>(gemv, first, last);
      default:
        return dot_range<8, Row>(gemv, first, last);
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
