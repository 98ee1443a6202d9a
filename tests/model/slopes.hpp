// Gradients of whole layers and models against finite differences of a loss in double.
#pragma once

#include <string>
#include <vector>

#include "testing.hpp"

namespace mamba::testing {

// Forward and backward pass through about fifteen stages a layer, each rounding its result to
// storage; f32 sums have some hundreds of terms.
inline double gradient_bound(DType dtype) {
  return dtype == DType::f32 ? 500 * f32_roundoff : 16 * roundoff(dtype);
}

// Some elements of one operand, chosen at random: relative error in norm. loss() reads `operand`.
template <class Loss>
void expect_slopes(const std::string& name, std::vector<double>& operand, const Tensor& gradient,
                   const Loss& loss, double bound) {
  const std::vector<double> got = values(gradient);
  ASSERT_EQ(got.size(), operand.size()) << name;
  Random random(17);
  std::vector<double> picked, slopes;
  const auto last = static_cast<std::int64_t>(operand.size()) - 1;
  for (int k = 0; k < 24 && last >= 0; ++k) {
    const auto i = static_cast<std::size_t>(random.integer(0, last));
    const double at = operand[i], step = 1e-5;
    operand[i] = at + step;
    const double above = loss();
    operand[i] = at - step;
    const double below = loss();
    operand[i] = at;
    slopes.push_back((above - below) / (2 * step));
    picked.push_back(got[i]);
  }
  EXPECT_LE(relative_error(picked, slopes), bound) << name;
}

}  // namespace mamba::testing
