#include <limits>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "ops/dense_reference.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::Bounded;
using testing::each_backend;
using testing::expect_error;
using testing::expect_within;
using testing::Guarded;
using testing::Padded;
using testing::Random;

const std::vector<std::int64_t> channel_counts{1, 2, 3, 15, 16, 17, 48, 80, 127, 1536};
const std::vector<std::int64_t> row_counts{1, 2, 7, 8, 9, 33};

struct Case {
  Tensor x, residual, weight;
  testing::NormReference expected;
  static constexpr float epsilon = 1e-3f;

  Case(const Shape& shape, DType dtype, bool with_x, bool with_residual, bool with_weight,
       std::uint64_t seed = 1) {
    Random random(seed);
    if (with_x) x = random.normal_tensor(shape, dtype);
    if (with_residual) residual = random.normal_tensor(shape, DType::f32, 3);
    if (with_weight) weight = random.normal_tensor({shape.back()});
    expected = testing::norm_reference(x, residual, weight, static_cast<double>(epsilon));
  }
};

AddRmsNorm operation(ConstTensorView x, TensorView residual, ConstTensorView weight, TensorView y) {
  AddRmsNorm op;
  op.x = x;
  op.residual = residual;
  op.weight = weight;
  op.y = y;
  op.epsilon = Case::epsilon;
  return op;
}

TEST_EACH(AddRmsNorm, MatchesTheReferenceInEveryShape, Device device, DType dtype) {
  for (const std::int64_t channels : channel_counts) {
    for (const std::int64_t rows : row_counts) {
      const Case c({rows, channels}, dtype, true, true, true);
      each_backend(device, [&] {
        const Padded x(c.x, device, 3);
        const Padded sum(c.residual, device, 5);
        const Tensor weight = c.weight.to(device);
        const Guarded y({rows, channels}, dtype, device, 2);
        const AddRmsNorm op = operation(x.view(), sum.view(), weight, y.view());
        run(op, default_stream(device));
        const std::string what = c.x.shape().to_string() + " " + name_of(dtype);
        expect_within(sum.view(), c.expected.sum, what + " sum");
        expect_within(y.view(), c.expected.y, what + " y");
        y.expect_untouched(what);
        sum.expect_untouched(what);
      });
      if (HasFatalFailure()) return;
    }
  }
}

TEST_EACH(AddRmsNorm, AnyOperandMayBeAbsent, Device device, DType dtype) {
  for (const bool with_x : {false, true}) {
    for (const bool with_residual : {false, true}) {
      for (const bool with_weight : {false, true}) {
        if (!with_x && !with_residual) continue;
        const Case c({5, 77}, dtype, with_x, with_residual, with_weight);
        each_backend(device, [&] {
          const Tensor x = c.x.to(device), weight = c.weight.to(device);
          Tensor sum = c.residual.to(device);
          const Guarded y({5, 77}, dtype, device);
          run(operation(x, sum, weight, y.view()), default_stream(device));
          expect_within(y.view(), c.expected.y, "y");
          y.expect_untouched("y");
          if (with_residual) expect_within(sum, c.expected.sum, "sum");
        });
      }
    }
  }
}

TEST_EACH(AddRmsNorm, TheSumMayGoElsewhere, Device device, DType dtype) {
  for (const std::int64_t channels : {77, 768, 20001}) {
    for (const auto& there : {std::pair{true, true}, {true, false}, {false, true}}) {
      const bool with_x = there.first;
      const bool with_residual = there.second;
      const Case c({3, channels}, dtype, with_x, with_residual, true);
      each_backend(device, [&] {
        const Tensor x = c.x.to(device), weight = c.weight.to(device);
        Tensor residual = c.residual.to(device);
        const Guarded sum({3, channels}, DType::f32, device, 3), y({3, channels}, dtype, device);
        AddRmsNorm op = operation(x, residual, weight, y.view());
        op.sum = sum.view();
        run(op, default_stream(device));
        const std::string what = std::to_string(channels) + " " + name_of(dtype);
        expect_within(y.view(), c.expected.y, what + " y");
        expect_within(sum.view(), c.expected.sum, what + " sum");
        sum.expect_untouched(what);
        if (!with_residual) return;
        EXPECT_EQ(testing::bits(residual), testing::bits(c.residual));
      });
    }
  }
}

TEST_EACH(AddRmsNorm, TimeSlicesOfABatch, Device device, DType dtype) {
  const Shape shape{3, 4, 50};
  const Case c(shape, dtype, true, true, true);
  const auto inside = [&](ConstTensorView values) {
    Tensor whole = Tensor::zeros({3, 9, 60}, values.dtype());
    copy(values, whole.view().steps(2, 4).columns(7, 50), default_stream());
    return whole.to(device);
  };
  const Tensor x = inside(c.x);
  Tensor sum = inside(c.residual);
  const Tensor weight = c.weight.to(device);
  const Guarded y({3, 6, 50}, dtype, device, 3);
  run(operation(x.view().steps(2, 4).columns(7, 50), sum.view().steps(2, 4).columns(7, 50), weight,
                y.view().steps(1, 4)),
      default_stream(device));
  expect_within(y.view().steps(1, 4), c.expected.y, "y");
  expect_within(sum.view().steps(2, 4).columns(7, 50), c.expected.sum, "sum");
  y.expect_untouched("y");
  for (const double value : testing::values(y.view().steps(0, 1))) ASSERT_TRUE(std::isnan(value));
  for (const double value : testing::values(y.view().steps(5, 1))) ASSERT_TRUE(std::isnan(value));
  for (const double value : testing::values(sum.view().steps(0, 2))) ASSERT_EQ(value, 0);
}

TEST_EACH(AddRmsNorm, YMayBeX, Device device, DType dtype) {
  for (const bool with_residual : {false, true}) {
    const Case c({4, 130}, dtype, true, with_residual, true);
    each_backend(device, [&] {
      Tensor x = c.x.to(device), sum = c.residual.to(device);
      const Tensor weight = c.weight.to(device);
      run(operation(x, sum, weight, x), default_stream(device));
      expect_within(x, c.expected.y, "in place");
    });
  }
}

TEST_EACH(AddRmsNorm, RankOneIsOneRow, Device device) {
  const Case c({40}, DType::bf16, true, true, true);
  const Tensor x = c.x.to(device), weight = c.weight.to(device);
  Tensor sum = c.residual.to(device);
  const Guarded y({40}, DType::bf16, device);
  run(operation(x, sum, weight, y.view()), default_stream(device));
  expect_within(y.view(), c.expected.y, "rank 1");
}

TEST_EACH(AddRmsNorm, ARowHasTheSameBitsInAnyCompanyAndWithAnyThreads, Device device, DType dtype) {
  each_backend(device, [&] {
    const Case c({200, 1000}, dtype, true, true, true);  // enough for three threads
    const Tensor x = c.x.to(device), weight = c.weight.to(device);
    std::vector<unsigned char> first;
    for (const int threads : {1, 2, 3}) {
      for (const std::int64_t rows : {200, 17, 1}) {
        Tensor sum = c.residual.to(device);
        Tensor y({rows, 1000}, dtype, device);
        Stream stream(device, threads);
        run(operation(x.view().rows(0, rows), sum.view().rows(0, rows), weight, y), stream);
        stream.synchronize();
        const std::vector<unsigned char> got = testing::bits(y);
        if (first.empty()) first = got;
        EXPECT_TRUE(std::equal(got.begin(), got.end(), first.begin()));
      }
    }
  });
}

TEST_EACH(AddRmsNorm, ANonFiniteRowLeavesTheOthersAlone, Device device) {
  Case c({3, 33}, DType::f32, true, true, false);
  c.x.data<float>()[33 + 5] = std::numeric_limits<float>::quiet_NaN();
  const Tensor x = c.x.to(device);
  Tensor sum = c.residual.to(device);
  Tensor y({3, 33}, DType::f32, device);
  run(operation(x, sum, {}, y), default_stream(device));
  const std::vector<double> got = testing::values(y);
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(std::isnan(got[i]), i / 33 == 1) << i;
}

TEST_EACH(AddRmsNorm, ZerosGiveZeros, Device device) {
  const Tensor x = Tensor::zeros({2, 20}, DType::f32, device);
  Tensor y({2, 20}, DType::f32, device);
  run(operation(x, {}, {}, y), default_stream(device));
  for (const double value : testing::values(y)) EXPECT_EQ(value, 0);
}

TEST(AddRmsNorm, TheBoundRejectsSumsInBf16) {
  const Case c({4, 80}, DType::bf16, true, false, false);
  const std::vector<double> x = testing::values(c.x);
  int outside = 0;
  for (std::size_t r = 0; r < 4; ++r) {
    bf16 squares(0.0f);
    for (std::size_t i = 0; i < 80; ++i) {
      const double v = x[r * 80 + i];
      squares = bf16(static_cast<float>(static_cast<double>(static_cast<float>(squares)) + v * v));
    }
    const double mean = static_cast<double>(static_cast<float>(squares)) / 80;
    const double scale = 1 / std::sqrt(mean + static_cast<double>(Case::epsilon));
    for (std::size_t i = 0; i < 80; ++i) {
      const Bounded& expected = c.expected.y[r * 80 + i];
      const double bound = expected.bound + testing::f32_roundoff * std::abs(expected.value);
      outside += std::abs(x[r * 80 + i] * scale - expected.value) > bound ? 1 : 0;
    }
  }
  EXPECT_GE(outside, 240);  // of 320: a row may be right by luck
}

TEST(AddRmsNorm, WrongOperandsAreNamed) {
  Stream& stream = default_stream();
  Tensor x({2, 8}, DType::bf16), sum({2, 8}, DType::f32), weight({8}, DType::f32);
  Tensor y({2, 8}, DType::bf16), f32s({2, 7}, DType::f32), halves({8}, DType::bf16);
  Tensor four({1, 1, 2, 8}, DType::f32), ids({2, 8}, DType::i32);
  const AddRmsNorm good = operation(x, sum, weight, y);
  const auto expect = [&](const std::string& text, auto change) {
    AddRmsNorm op = good;
    change(op);
    expect_error<ArgumentError>("add_rms_norm: " + text, [&] { run(op, stream); });
  };
  expect("y: expected a tensor, got none", [](AddRmsNorm& op) { op.y = {}; });
  expect("y: expected f32 or bf16 or f16, got i32", [&](AddRmsNorm& op) { op.y = ids; });
  expect("x: expected x, residual or both, got neither", [](AddRmsNorm& op) {
    op.x = {};
    op.residual = {};
  });
  expect("x: expected bf16, got f32", [&](AddRmsNorm& op) { op.x = sum; });
  expect("residual: expected [2, 8], got [2, 7]", [&](AddRmsNorm& op) { op.residual = f32s; });
  expect("residual: expected f32, got bf16", [&](AddRmsNorm& op) { op.residual = y; });
  expect("weight: expected f32, got bf16", [&](AddRmsNorm& op) { op.weight = halves; });
  expect("epsilon: expected a finite number of at least 0, got -1",
         [](AddRmsNorm& op) { op.epsilon = -1; });
  expect("y: expected at most 3 dimensions, got [1, 1, 2, 8]", [&](AddRmsNorm& op) {
    op.x = {};
    op.residual = four;
    op.weight = {};
    op.y = four;
  });
  Tensor none({0, 8}, DType::bf16), no_sum({0, 8}, DType::f32);
  run(operation(none, no_sum, weight, none), stream);
}

}  // namespace
}  // namespace mamba
