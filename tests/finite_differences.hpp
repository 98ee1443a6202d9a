// The derivative of a loss in double by central differences, for references of gradients.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "testing.hpp"

namespace mamba::testing {

// gradient[i] is d loss() / d operand[i], which loss() reads. With steps of 1e-5 the difference is
// off by about 1e-10 of what enters it.
template <class Loss>
void expect_derivative(const std::string& what, std::vector<double>& operand,
                       const std::vector<Bounded>& gradient, Loss loss) {
  ASSERT_GE(gradient.size(), operand.size()) << what;
  for (std::size_t i = 0; i < operand.size(); ++i) {
    const double at = operand[i], step = 1e-5;
    operand[i] = at + step;
    const double above = loss();
    operand[i] = at - step;
    const double below = loss();
    operand[i] = at;
    const double slope = (above - below) / (2 * step);
    ASSERT_NEAR(gradient[i].value, slope, 1e-7 * (1 + std::abs(slope))) << what << "[" << i << "]";
  }
}

}  // namespace mamba::testing
