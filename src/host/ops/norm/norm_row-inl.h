// What the norms' loops over a row share.
#if defined(MAMBA_HOST_OPS_NORM_NORM_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_NORM_NORM_ROW_INL_H_
#undef MAMBA_HOST_OPS_NORM_NORM_ROW_INL_H_
#else
#define MAMBA_HOST_OPS_NORM_NORM_ROW_INL_H_
#endif

#include <algorithm>

#include <mamba/tensor_view.hpp>

#include "host/ops/channels-inl.h"
#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {
namespace {

inline constexpr F32 d;

HWY_INLINE float sum_of(F32Vec v) { return hn::GetLane(hn::SumOfLanes(d, v)); }

// f(i, what is left from i on) for each vector of a row.
template <class F>
HWY_INLINE void each_vector(std::int64_t channels, F f) {
  for (std::int64_t i = 0; i < channels; i += vector_channels()) f(i, channels - i);
}

// Zero in the lanes beyond the row.
HWY_INLINE F32Vec within(F32Vec v, std::int64_t left) {
  const auto lanes = static_cast<std::size_t>(std::min(left, vector_channels()));
  return hn::IfThenElseZero(hn::FirstN(d, lanes), v);
}

// A weight or bias that may be absent.
HWY_INLINE F32Vec load_or(const float* from, std::int64_t i, std::int64_t left, float otherwise) {
  return from == nullptr ? hn::Set(d, otherwise) : load_channels(from + i, left);
}

HWY_INLINE void add_to(float* sums, F32Vec v) {
  if (sums != nullptr) hn::StoreU(hn::Add(hn::LoadU(d, sums), v), d, sums);
}

inline const float* data_or_null(const ConstTensorView& view) {
  return view ? view.data<float>() : nullptr;
}

}  // namespace
}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
