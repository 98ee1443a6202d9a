#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/storage.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include "detail/visit.hpp"
#include "host/ops/storage-inl.h"
#include "host/ops/storage.hpp"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

template <class T>
void widen_run(const T* from, float* to, std::size_t count) {
  const std::size_t lanes = hn::Lanes(F32());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) store(load(from + i), to + i);
  if (i < count) store_part(load_part(from + i, count - i), to + i, count - i);
}

void widen(const void* from, DType dtype, float* to, std::int64_t count) {
  detail::visit(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    widen_run(static_cast<const T*>(from), to, static_cast<std::size_t>(count));
  });
}

template <class B, class Y>
void narrow_run(const float* sums, const B* bias, Y* to, std::size_t count) {
  const std::size_t lanes = hn::Lanes(F32());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    F32Vec v = load(sums + i);
    if (bias != nullptr) v = hn::Add(v, load(bias + i));
    store(v, to + i);
  }
  if (i == count) return;
  F32Vec v = load_part(sums + i, count - i);
  if (bias != nullptr) v = hn::Add(v, load_part(bias + i, count - i));
  store_part(v, to + i, count - i);
}

void narrow(const float* sums, const void* bias, DType bias_dtype, void* to, DType dtype,
            std::int64_t count) {
  detail::visit(bias_dtype, [&](auto bias_type) {
    detail::visit(dtype, [&](auto type) {
      using B = typename decltype(bias_type)::type;
      using Y = typename decltype(type)::type;
      narrow_run(sums, static_cast<const B*>(bias), static_cast<Y*>(to),
                 static_cast<std::size_t>(count));
    });
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(widen);
HWY_EXPORT(narrow);

void widen(const void* from, DType dtype, float* to, std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(widen)(from, dtype, to, count);
}

void narrow(const float* sums, const void* bias, DType bias_dtype, void* to, DType dtype,
            std::int64_t count) {
  HWY_DYNAMIC_DISPATCH(narrow)(sums, bias, bias_dtype, to, dtype, count);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
