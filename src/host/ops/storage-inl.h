// Vectors of f32 from and to the storage types, compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_STORAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_STORAGE_INL_H_
#undef MAMBA_HOST_OPS_STORAGE_INL_H_
#else
#define MAMBA_HOST_OPS_STORAGE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#include <mamba/dtype.hpp>

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32>;
constexpr std::size_t max_lanes = hn::MaxLanes(F32());

// Where the hardware converts f16. Highway's emulation elsewhere truncates, so there the scalar
// conversions of dtype.hpp are used, lane by lane.
constexpr bool has_f16 = (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64;

HWY_INLINE F32Vec load(const float* from) { return hn::LoadU(F32(), from); }

HWY_INLINE F32Vec load(const bf16* from) {
  const hn::Rebind<std::uint16_t, F32> d16;
  const hn::RebindToUnsigned<F32> d32;
  const auto upper = hn::PromoteTo(d32, hn::LoadU(d16, &from->bits));
  return hn::BitCast(F32(), hn::ShiftLeft<16>(upper));
}

HWY_INLINE F32Vec load(const f16* from) {
  if constexpr (has_f16) {
    const hn::Rebind<hwy::float16_t, F32> d16;
    const hn::Rebind<std::uint16_t, F32> du16;
    return hn::PromoteTo(F32(), hn::BitCast(d16, hn::LoadU(du16, &from->bits)));
  } else {
    HWY_ALIGN float lanes[max_lanes];
    for (std::size_t i = 0; i < hn::Lanes(F32()); ++i) lanes[i] = static_cast<float>(from[i]);
    return hn::Load(F32(), lanes);
  }
}

HWY_INLINE void store(F32Vec v, float* to) { hn::StoreU(v, F32(), to); }

// To nearest even, a NaN to a quiet NaN: Highway's own conversion truncates.
HWY_INLINE void store(F32Vec v, bf16* to) {
  const hn::Rebind<std::uint16_t, F32> d16;
  const hn::RebindToUnsigned<F32> d32;
  const hn::RebindToSigned<F32> di32;
  const auto u = hn::BitCast(d32, v);
  const auto upper = hn::ShiftRight<16>(u);
  const auto odd = hn::And(upper, hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(u, hn::Set(d32, 0x7fff)), odd));
  const auto quiet = hn::Or(upper, hn::Set(d32, 0x40));
  const auto bits = hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, bits)), d16, &to->bits);
}

HWY_INLINE void store(F32Vec v, f16* to) {
  if constexpr (has_f16) {
    const hn::Rebind<hwy::float16_t, F32> d16;
    const hn::Rebind<std::uint16_t, F32> du16;
    hn::StoreU(hn::BitCast(du16, hn::DemoteTo(d16, v)), du16, &to->bits);
  } else {
    HWY_ALIGN float lanes[max_lanes];
    hn::Store(v, F32(), lanes);
    for (std::size_t i = 0; i < hn::Lanes(F32()); ++i) to[i] = f16(lanes[i]);
  }
}

// The first `count` lanes, fewer than a vector: nothing beyond them is touched; the others are
// zero.
template <class T>
HWY_INLINE F32Vec load_part(const T* from, std::size_t count) {
  HWY_ALIGN T lanes[max_lanes];
  std::memset(static_cast<void*>(lanes), 0, sizeof(lanes));
  std::memcpy(static_cast<void*>(lanes), from, count * sizeof(T));
  return load(lanes);
}

template <class T>
HWY_INLINE void store_part(F32Vec v, T* to, std::size_t count) {
  HWY_ALIGN T lanes[max_lanes];
  store(v, lanes);
  std::memcpy(static_cast<void*>(to), lanes, count * sizeof(T));
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
