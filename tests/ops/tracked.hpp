// A double that carries a bound on how far from it an f32 computation of the same formula may be:
// every operation rounds once, relative 2^-24, and passes on the bounds of its operands, to first
// order. References written with it read like the formula.
#pragma once

#include <cmath>
#include <vector>

#include "ops/sequence_reference.hpp"

namespace mamba::testing {

struct Tracked {
  double value = 0;
  double bound = 0;

  Tracked() = default;
  Tracked(double exact) : value(exact) {}  // operands are exact
  Tracked(double v, double b) : value(v), bound(b) {}
  Tracked(const Bounded& b) : value(b.value), bound(b.bound) {}

  operator Bounded() const { return {value, second_order * bound + f32_smallest}; }
  // The same after so many further roundings.
  Tracked rounded(double times = 1) const {
    return {value, bound + times * f32_roundoff * std::abs(value)};
  }

  friend Tracked operator+(const Tracked& a, const Tracked& b) {
    return Tracked(a.value + b.value, a.bound + b.bound).rounded();
  }
  friend Tracked operator-(const Tracked& a, const Tracked& b) {
    return Tracked(a.value - b.value, a.bound + b.bound).rounded();
  }
  friend Tracked operator*(const Tracked& a, const Tracked& b) {
    const double spread =
        std::abs(a.value) * b.bound + std::abs(b.value) * a.bound + a.bound * b.bound;
    return Tracked(a.value * b.value, spread + f32_smallest).rounded();
  }
};

// f(x) of relative accuracy `roundings`, where |f'| <= slope near x.
inline Tracked function(double value, double slope, const Tracked& x, double roundings) {
  return Tracked(value, slope * x.bound + f32_smallest).rounded(roundings);
}

inline Tracked softplus(const Tracked& v) {
  return function(exact_softplus(v.value), 1 / (1 + std::exp(-v.value)), v, softplus_roundings);
}
inline Tracked sigmoid(const Tracked& v) {
  const double s = 1 / (1 + std::exp(-v.value));
  return function(s, s * (1 - s), v, exp_roundings + 3);
}
inline Tracked silu(const Tracked& z) {
  return function(exact_silu(z.value), 1.1, z, silu_roundings);
}
// silu'(z) = s + z s (1 - s): two sigmoids, two products and a sum.
inline Tracked silu_slope(const Tracked& z) {
  const Tracked s = sigmoid(z), rest = sigmoid(Tracked(-z.value, z.bound));
  return s + z * s * rest;
}
inline Tracked decay(const Tracked& exponent) {
  const double e = std::exp(exponent.value);
  return function(e, e, exponent, exp2_roundings);
}

// A sum whose order is open: each of n terms may take part in n additions.
class TrackedSum {
 public:
  void add(const Tracked& term) {
    value_ += term.value;
    bound_ += term.bound;
    magnitude_ += std::abs(term.value);
    ++count_;
  }
  operator Tracked() const {
    return {value_, bound_ + static_cast<double>(count_ + 1) * f32_roundoff * magnitude_};
  }

 private:
  double value_ = 0, bound_ = 0, magnitude_ = 0;
  std::int64_t count_ = 0;
};

// 1 / sqrt(squares / count + epsilon), a norm's scale. The root halves what the squares carry; the
// division, epsilon, root and reciprocal are a rounding each.
inline Tracked norm_scale(const TrackedSum& squares, std::size_t count, double epsilon) {
  const Tracked inside = static_cast<Tracked>(squares) * (1 / static_cast<double>(count)) + epsilon;
  const double root = 1 / std::sqrt(inside.value);
  return Tracked(root, 0.5 * root / inside.value * inside.bound).rounded(3);
}

inline std::vector<Bounded> bounded(const std::vector<TrackedSum>& sums) {
  std::vector<Bounded> result;
  for (const TrackedSum& sum : sums) result.push_back(static_cast<Tracked>(sum));
  return result;
}

}  // namespace mamba::testing
