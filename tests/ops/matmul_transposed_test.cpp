// Matmul with transposed factors and added to what is there: the products that gradients are.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "ops/dense_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {
namespace {

struct Transposed {
  std::int64_t batch = 2, time = 5, in = 17, out = 9;
  DType dtype = DType::f32;
  DType y_dtype = DType::f32;
  bool transpose_x = false, transpose_weight = true, bias = false, accumulate = false;

  std::string name() const {
    return Shape{batch, time, in, out}.to_string() + " " + name_of(dtype) + " to " +
           name_of(y_dtype) + (transpose_x ? " x^T" : "") + (transpose_weight ? " w^T" : "") +
           (bias ? " bias" : "") + (accumulate ? " accumulate" : "");
  }
  Shape x_shape() const { return {batch, time, in}; }
  Shape weight_shape() const {
    if (transpose_x) return {batch, time, out};
    return transpose_weight ? Shape{in, out} : Shape{out, in};
  }
  Shape y_shape() const { return transpose_x ? Shape{in, out} : Shape{batch, time, out}; }
};

struct TransposedInputs {
  Tensor x, weight, bias, before;

  explicit TransposedInputs(const Transposed& c) {
    Random random(1);
    x = random.normal_tensor(c.x_shape(), c.dtype);
    weight = random.normal_tensor(c.weight_shape(), c.dtype);
    if (c.bias) bias = random.normal_tensor({c.out}, c.dtype);
    before = random.normal_tensor(c.y_shape(), c.y_dtype);
  }

  std::vector<Bounded> expected(const Transposed& c) const {
    const std::vector<double> xs = values(x), ws = values(weight), old = values(before);
    const std::vector<double> bs = optional_values(bias);
    const auto steps = static_cast<std::size_t>(c.batch * c.time);
    const auto in = static_cast<std::size_t>(c.in), out = static_cast<std::size_t>(c.out);
    const std::size_t rows = c.transpose_x ? in : steps, depth = c.transpose_x ? steps : in;
    std::vector<Bounded> y;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t o = 0; o < out; ++o) {
        TrackedSum sum;
        if (c.accumulate) sum.add(old[r * out + o]);
        if (c.bias) sum.add(bs[o]);
        for (std::size_t k = 0; k < depth; ++k) {
          const double factor = c.transpose_x ? xs[k * in + r] : xs[r * in + k];
          sum.add(Tracked(factor) * ws[c.transpose_weight ? k * out + o : o * in + k]);
        }
        y.push_back(static_cast<Tracked>(sum));
      }
    }
    return y;
  }
};

// Strided operands, guarded output.
void expect_product(const Transposed& c, Device device) {
  const TransposedInputs inputs(c);
  const std::vector<Bounded> expected = inputs.expected(c);
  each_backend(device, [&] {
    const Padded x(inputs.x, device, 5), weight(inputs.weight, device, 3);
    const Tensor bias = inputs.bias.to(device);
    for (std::int64_t pad : {0, 7}) {
      const Padded y(inputs.before, device, pad);
      Stream stream(device, 3);
      Matmul op;
      op.x = x.view();
      op.weight = weight.view();
      op.bias = bias;
      op.y = y.view();
      op.transpose_x = c.transpose_x;
      op.transpose_weight = c.transpose_weight;
      op.accumulate = c.accumulate;
      run(op, stream);
      stream.synchronize();
      expect_within(y.view(), expected, c.name());
      y.expect_untouched(c.name());
    }
  });
}

TEST_EACH(MatmulTransposed, MatchesTheReference, Device device, DType dtype) {
  for (const DType y_dtype : {dtype, DType::f32}) {
    for (int choice = 0; choice < 12; ++choice) {
      Transposed c;
      c.dtype = dtype;
      c.y_dtype = y_dtype;
      c.accumulate = choice % 2 != 0;
      c.bias = choice / 2 % 2 != 0;
      c.transpose_x = choice / 4 == 1;
      c.transpose_weight = choice / 4 != 2;
      for (const Shape& size : {Shape{2, 5, 17, 9},
                                {1, 1, 3, 1},
                                {3, 40, 48, 80},
                                {1, 33, 1, 16},
                                {3, 200, 150, 7},
                                {3, 200, 300, 1}}) {
        c.batch = size[0];
        c.time = size[1];
        c.in = size[2];
        c.out = size[3];
        expect_product(c, device);
      }
      if (HasFatalFailure()) return;
    }
  }
}

// More steps than a block of the CPU is deep, and more columns than one is wide.
TEST_EACH(MatmulTransposed, LongSums, Device device, OneOf<DType::f32, DType::bf16> dtype) {
  Transposed c;
  c.dtype = dtype;
  c.transpose_x = true;
  c.batch = 3;
  c.time = 900;
  c.in = 20;
  c.out = 530;
  for (const bool accumulate : {false, true}) {
    c.accumulate = accumulate;
    expect_product(c, device);
  }
}

TEST_EACH(MatmulTransposed, ASumOverNoRowsIsZeroOrWhatWasThere, Device device) {
  for (const bool accumulate : {false, true}) {
    const Tensor dy({2, 0, 4}, DType::f32, device), x({2, 0, 3}, DType::f32, device);
    Random random(1);
    const Tensor before = random.normal_tensor({4, 3}).to(device);
    Tensor y = before.clone();
    Matmul op;
    op.x = dy;
    op.weight = x;
    op.y = y;
    op.transpose_x = op.transpose_weight = true;
    op.accumulate = accumulate;
    run(op, default_stream(device));
    default_stream(device).synchronize();
    EXPECT_EQ(values(y), accumulate ? values(before) : std::vector<double>(12, 0.0));
  }
}

TEST_EACH(MatmulTransposed, SameBitsTwice, Device device) {
  Random random(1);
  const Tensor dy = random.normal_tensor({4, 300, 64}, DType::bf16).to(device);
  const Tensor x = random.normal_tensor({4, 300, 96}, DType::bf16).to(device);
  Tensor first({64, 96}, DType::f32, device), second({64, 96}, DType::f32, device);
  for (Tensor* y : {&first, &second}) {
    Matmul op;
    op.x = dy;
    op.weight = x;
    op.y = *y;
    op.transpose_x = op.transpose_weight = true;
    run(op, default_stream(device));
  }
  default_stream(device).synchronize();
  EXPECT_EQ(bits(first), bits(second));
}

TEST(MatmulTransposed, WrongOperandsAreNamed) {
  Stream& stream = default_stream();
  Tensor dy({2, 5, 4}, DType::f32), x({2, 5, 3}, DType::f32), y({4, 3}, DType::f32);
  Tensor weight({4, 3}, DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    Matmul op;
    op.x = dy;
    op.weight = x;
    op.y = y;
    op.transpose_x = op.transpose_weight = true;
    change(op);
    expect_error<ArgumentError>("matmul: " + text, [&] { run(op, stream); });
  };
  expect("transpose_weight: expected true with transpose_x, got false",
         [](Matmul& op) { op.transpose_weight = false; });
  expect("weight: expected [2, 5, 3], got [4, 3]", [&](Matmul& op) { op.weight = weight; });
  expect("y: expected [4, 3], got [2, 5, 3]", [&](Matmul& op) { op.y = x; });
  expect("x: expected [2, 5, 3], got [2, 5, 4]", [&](Matmul& op) {
    op.transpose_x = false;
    op.weight = y.view().rows(0, 3);
  });
}

}  // namespace
}  // namespace mamba::testing
