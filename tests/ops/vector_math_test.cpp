// The functions of vector_math-inl.h on every target this machine has, against double.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/vector_math_test.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

constexpr std::size_t test_lanes = 16;

// function: 0 exp2_nonpositive, 1 exp, 2 softplus, 3 silu.
void evaluate_functions(int function, const float* x, float* y, std::size_t count) {
  const hn::CappedTag<float, test_lanes> d;
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    const auto result = function == 0   ? exp2_nonpositive(d, v)
                        : function == 1 ? exp(d, v)
                        : function == 2 ? softplus(d, v)
                                        : silu(d, v);
    hn::StoreU(result, d, y + i);
  }
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>
#include <limits>

#include "ops/sequence_reference.hpp"
#include "ops/targets.hpp"

namespace mamba::host {

HWY_EXPORT(evaluate_functions);

namespace {

// The largest relative error of `function` over [low, high], in roundings; absolute errors below
// f32_smallest do not count.
template <class Exact>
double worst(int function, float low, float high, Exact exact) {
  constexpr std::size_t count = 1 << 20;
  std::vector<float> x(count), y(count);
  for (std::size_t i = 0; i < count; ++i) {
    const double position = static_cast<double>(i) / (count - 1);
    x[i] = static_cast<float>(low + (high - static_cast<double>(low)) * position);
  }
  HWY_DYNAMIC_DISPATCH(evaluate_functions)(function, x.data(), y.data(), count);
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double expected = exact(static_cast<double>(x[i]));
    const double error = std::max(0.0, std::abs(y[i] - expected) - testing::f32_smallest);
    const double relative = error / std::max(std::abs(expected), testing::f32_smallest);
    if (!(relative <= largest)) largest = relative;
  }
  return largest / testing::f32_roundoff;
}

TEST(VectorMath, RelativeErrorOnEveryTarget) {
  testing::for_each_target([](const char* name) {
    const auto exp2_of = [](double x) { return std::exp2(x); };
    const auto exp_of = [](double x) { return std::exp(x); };
    const double exp2_error = std::max(worst(0, -150, 0, exp2_of), worst(0, -1, 0, exp2_of));
    const double exp_error = std::max(worst(1, -120, 88, exp_of), worst(1, -1, 1, exp_of));
    const double softplus_error = std::max({worst(2, -87, 100, testing::exact_softplus),
                                            worst(2, -12, 2, testing::exact_softplus),
                                            worst(2, -1e-3f, 1e-3f, testing::exact_softplus)});
    const double silu_error =
        std::max({worst(3, -87, 1e4f, testing::exact_silu), worst(3, -20, 20, testing::exact_silu),
                  worst(3, -1e-3f, 1e-3f, testing::exact_silu)});
    EXPECT_LE(exp2_error, testing::exp2_roundings) << name;
    EXPECT_LE(exp_error, testing::exp_roundings) << name;
    EXPECT_LE(softplus_error, testing::softplus_roundings) << name;
    EXPECT_LE(silu_error, testing::silu_roundings) << name;
    ::testing::Test::RecordProperty(
        name, std::to_string(exp2_error) + " " + std::to_string(exp_error) + " " +
                  std::to_string(softplus_error) + " " + std::to_string(silu_error));
  });
}

float evaluate(int function, float x) {
  std::vector<float> in(16, x), out(16);
  HWY_DYNAMIC_DISPATCH(evaluate_functions)(function, in.data(), out.data(), in.size());
  return out[0];
}

TEST(VectorMath, SpecialValues) {
  static constexpr float infinity = std::numeric_limits<float>::infinity();
  static constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  testing::for_each_target([](const char* name) {
    SCOPED_TRACE(name);
    EXPECT_EQ(evaluate(0, 0.0f), 1.0f);
    EXPECT_EQ(evaluate(0, -127.0f), 0.0f);
    EXPECT_EQ(evaluate(0, -1e30f), 0.0f);
    EXPECT_EQ(evaluate(0, -infinity), 0.0f);
    EXPECT_EQ(evaluate(1, 0.0f), 1.0f);
    EXPECT_EQ(evaluate(1, -infinity), 0.0f);
    EXPECT_EQ(evaluate(2, 20.5f), 20.5f);
    EXPECT_EQ(evaluate(2, 1e30f), 1e30f);
    EXPECT_EQ(evaluate(2, -1e30f), 0.0f);
    EXPECT_EQ(evaluate(2, infinity), infinity);
    EXPECT_EQ(evaluate(2, -infinity), 0.0f);
    EXPECT_EQ(evaluate(3, 1e30f), 1e30f);
    EXPECT_EQ(evaluate(3, -1e4f), 0.0f);
    EXPECT_EQ(evaluate(3, infinity), infinity);
    for (int function = 0; function < 4; ++function) {
      EXPECT_TRUE(std::isnan(evaluate(function, nan))) << function;
    }
    // Not exp2_nonpositive: it asks for the canonical NaN.
    const std::uint32_t bits = 0xffffffffu;
    float all_ones;
    std::memcpy(&all_ones, &bits, sizeof(bits));
    for (int function = 1; function < 4; ++function) {
      EXPECT_TRUE(std::isnan(evaluate(function, all_ones))) << function;
    }
  });
}

}  // namespace
}  // namespace mamba::host
#endif  // HWY_ONCE
