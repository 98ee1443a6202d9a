// Elementary functions on Highway vectors of f32, compiled once per target (foreach_target.h).
//
// exp2 runs once per channel, state and step and is the price of the selective scan, so it is a
// polynomial of the least degree that keeps f32 accuracy: Highway's own Exp alone costs more than
// the whole recurrence. Coefficients: relative minimax (Remez), rounded to f32. Largest relative
// errors, in units of 2^-24, with and without fused multiply-add (vector_math_test.cpp measures
// them): exp2 1.5 and 1.8, exp 1.7 and 2.0, softplus 3.0 and 3.6, silu 3.7 and 4.2. Results below
// 2^-126 may be zero. NaN in gives NaN out.
#if defined(MAMBA_HOST_VECTOR_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_VECTOR_MATH_INL_H_
#undef MAMBA_HOST_VECTOR_MATH_INL_H_
#else
#define MAMBA_HOST_VECTOR_MATH_INL_H_
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float log2_e = 0x1.715476p+0f;

// max(x, low) and min(x, high) that keep a NaN in x. x86 returns the second operand when one is
// NaN; Highway's Arm, one-lane and emulated targets return the other operand.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V at_least(D d, V x, float low) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_ARCH_ARM
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, low)), hn::Set(d, low), x);
#else
  return hn::Max(hn::Set(d, low), x);
#endif
}

template <class D, class V = hn::VFromD<D>>
HWY_INLINE V at_most(D d, V x, float high) {
  return hn::Neg(at_least(d, hn::Neg(x), -high));
}

// 2^f for |f| <= 1/2: 1 + f Q(f), exact at 0, so that slow decays stay slow. Q of degree 5 leaves
// 2.6e-9; degree 4 would leave 4.3e-7, which is 7 roundings.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V exp2_fraction(D d, V f) {
  V q = hn::Set(d, 0x1.470b42p-13f);
  q = hn::MulAdd(q, f, hn::Set(d, 0x1.5f7276p-10f));
  q = hn::MulAdd(q, f, hn::Set(d, 0x1.3b270ep-7f));
  q = hn::MulAdd(q, f, hn::Set(d, 0x1.c6ae72p-5f));
  q = hn::MulAdd(q, f, hn::Set(d, 0x1.ebfbe2p-3f));
  q = hn::MulAdd(q, f, hn::Set(d, 0x1.62e432p-1f));
  return hn::MulAdd(q, f, hn::Set(d, 1.0f));
}

// Adding 1.5 2^23 rounds to an integer and leaves it in the low bits of the sum.
constexpr float round_to_integer = 0x1.8p23f;

// 2^x for x <= 0; zero from -127 down, and off by less than 2^-126 above that where the result is
// subnormal. The exponent is added to the bits of the fraction: an integer addition, which does not
// compete with the multiplications. A NaN must be the canonical one (no low bits set).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V exp2_nonpositive(D d, V x) {
  const hn::RebindToSigned<D> di;
  x = at_least(d, x, -127.0f);
  const V shifted = hn::Add(x, hn::Set(d, round_to_integer));
  const V f = hn::Sub(x, hn::Sub(shifted, hn::Set(d, round_to_integer)));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, exp2_fraction(d, f)), exponent));
}

// 2^x; infinity from 128 up. What exp2_nonpositive does is right up to there: at 128 its sum is the
// bits of infinity.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V exp2(D d, V x) {
  return exp2_nonpositive(d, at_most(d, x, 128.0f));
}

// e^x; zero below -87.7, and 2.4e38 above 88.37. ln 2 is split so that n times its first part is
// exact on targets without a fused multiply-add too.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  x = at_most(d, at_least(d, x, -88.02f), 88.37f);
  const V shifted = hn::MulAdd(x, hn::Set(d, log2_e), hn::Set(d, round_to_integer));
  const V n = hn::Sub(shifted, hn::Set(d, round_to_integer));
  V rest = hn::NegMulAdd(n, hn::Set(d, 0x1.62ep-1f), x);
  rest = hn::NegMulAdd(n, hn::Set(d, 0x1.0bfbe8p-15f), rest);
  const V fraction = exp2_fraction(d, hn::Mul(rest, hn::Set(d, log2_e)));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::BitCast(di, shifted), hn::Set(di, 127)));
  return hn::Mul(fraction, hn::BitCast(d, power));
}

// log(1 + e) for 0 <= e <= 1: e + e^2 R(e), R of degree 8 leaving 5.1e-9.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V log1p_unit(D d, V e) {
  V r = hn::Set(d, -0x1.b2f574p-9f);
  r = hn::MulAdd(r, e, hn::Set(d, 0x1.4b0828p-6f));
  r = hn::MulAdd(r, e, hn::Set(d, -0x1.d86316p-5f));
  r = hn::MulAdd(r, e, hn::Set(d, 0x1.b579bap-4f));
  r = hn::MulAdd(r, e, hn::Set(d, -0x1.3a7a7ep-3f));
  r = hn::MulAdd(r, e, hn::Set(d, 0x1.935c9ep-3f));
  r = hn::MulAdd(r, e, hn::Set(d, -0x1.ff26e0p-3f));
  r = hn::MulAdd(r, e, hn::Set(d, 0x1.554df0p-2f));
  r = hn::MulAdd(r, e, hn::Set(d, -0x1.ffffd2p-2f));
  return hn::MulAdd(hn::Mul(e, e), r, e);
}

// log(1 + e^v) = max(v, 0) + log1p(e^-|v|). Above the threshold of 20 the second term is less than
// half a unit in the last place of v, so the sum is v without a select.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V softplus(D d, V v) {
  const V e = exp(d, hn::Neg(hn::Abs(v)));
  return hn::Add(hn::Max(hn::Zero(d), v), log1p_unit(d, e));
}

// z / (1 + e^-z), written in e^-|z| so that nothing overflows.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V silu(D d, V z) {
  const V one = hn::Set(d, 1.0f);
  const V e = exp(d, hn::Neg(hn::Abs(z)));
  const V numerator = hn::IfThenElse(hn::Lt(z, hn::Zero(d)), e, one);
  return hn::Div(hn::Mul(z, numerator), hn::Add(one, e));
}

// sigmoid(z) and 1 - sigmoid(z), neither a difference.
template <class D, class V = hn::VFromD<D>>
struct Sigmoid {
  V value, rest;

  HWY_INLINE Sigmoid(D d, V z) {
    const V one = hn::Set(d, 1.0f);
    const V e = exp(d, hn::Neg(hn::Abs(z)));
    const V larger = hn::Div(one, hn::Add(one, e));
    const V smaller = hn::Mul(e, larger);
    const auto negative = hn::Lt(z, hn::Zero(d));
    value = hn::IfThenElse(negative, smaller, larger);
    rest = hn::IfThenElse(negative, larger, smaller);
  }
};

// silu'(z) = s + z s (1 - s) with s = sigmoid(z).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V silu_slope(D d, V z) {
  const Sigmoid<D> s(d, z);
  return hn::MulAdd(hn::Mul(z, s.value), s.rest, s.value);
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
