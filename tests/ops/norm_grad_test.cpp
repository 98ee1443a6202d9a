// LayerNorm and the gradients of both norms against loops in double, those against finite
// differences.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include <mamba/grad_ops.hpp>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/dense_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {
namespace {

constexpr double epsilon = 1e-5f;

// The operands of one call in double; absent ones are empty. For the RMS norm x is the sum and
// there are no bias and no gate.
struct Norm {
  std::size_t rows, channels;
  std::vector<double> x, weight, bias, z, dy, dresidual;
  bool centred = true;  // LayerNorm, else the RMS norm

  struct Row {
    std::vector<Tracked> normal;
    Tracked scale;
  };
  // x_hat of row r, and what it was scaled by. The squares carry two roundings of what is squared,
  // their own and the additions.
  Row row(std::size_t r) const {
    TrackedSum sum, squares;
    for (std::size_t c = 0; c < channels; ++c) sum.add(x[r * channels + c]);
    const auto n = static_cast<double>(channels);
    const Tracked mean = centred ? static_cast<Tracked>(sum) * (1 / n) : Tracked(0);
    std::vector<Tracked> from(channels);
    for (std::size_t c = 0; c < channels; ++c) {
      from[c] = centred ? Tracked(x[r * channels + c]) - mean : Tracked(x[r * channels + c]);
      squares.add(from[c] * from[c]);
    }
    const Tracked scale = norm_scale(squares, channels, epsilon);
    Row row{{}, scale};
    for (const Tracked& v : from) row.normal.push_back(v * scale);
    return row;
  }
  Tracked w(std::size_t c) const { return weight.empty() ? 1 : weight[c]; }
  // Before the gate.
  Tracked normed(const Row& row, std::size_t c) const {
    const Tracked v = row.normal[c] * w(c);
    return bias.empty() ? v : v + bias[c];
  }
  Tracked y(const Row& row, std::size_t r, std::size_t c) const {
    const Tracked v = normed(row, c);
    return z.empty() ? v : v * silu(z[r * channels + c]);
  }
  double loss() const {
    double total = 0;
    for (std::size_t r = 0; r < rows; ++r) {
      const Row one = row(r);
      for (std::size_t c = 0; c < channels; ++c) {
        total += dy[r * channels + c] * y(one, r, c).value;
        if (!dresidual.empty()) total += dresidual[r * channels + c] * x[r * channels + c];
      }
    }
    return total;
  }
};

struct NormGrads {
  std::vector<Bounded> y, dx, dz, dweight, dbias;
};

NormGrads gradient(const Norm& norm) {
  NormGrads out;
  std::vector<TrackedSum> dweight(norm.channels), dbias(norm.channels);
  for (std::size_t r = 0; r < norm.rows; ++r) {
    const Norm::Row row = norm.row(r);
    TrackedSum sum, product;
    std::vector<Tracked> g(norm.channels);
    for (std::size_t c = 0; c < norm.channels; ++c) {
      const std::size_t i = r * norm.channels + c;
      Tracked dn = norm.dy[i];
      if (!norm.z.empty()) {
        out.dz.push_back(dn * norm.normed(row, c) * silu_slope(norm.z[i]));
        dn = dn * silu(norm.z[i]);
      }
      out.y.push_back(norm.y(row, r, c));
      dweight[c].add(dn * row.normal[c]);
      dbias[c].add(dn);
      g[c] = dn * norm.w(c);
      sum.add(g[c]);
      product.add(g[c] * row.normal[c]);
    }
    const Tracked share(1 / static_cast<double>(norm.channels));
    for (std::size_t c = 0; c < norm.channels; ++c) {
      Tracked inner = norm.centred ? g[c] - static_cast<Tracked>(sum) * share : g[c];
      inner = inner - (row.normal[c] * (static_cast<Tracked>(product) * share)).rounded(3);
      const Tracked dx = inner * row.scale;
      const std::size_t i = r * norm.channels + c;
      out.dx.push_back(norm.dresidual.empty() ? dx : dx + norm.dresidual[i]);
    }
  }
  out.dweight = bounded(dweight);
  out.dbias = bounded(dbias);
  return out;
}

struct NormCase {
  Shape shape{2, 5, 17};
  DType dtype = DType::f32;
  bool weight = true, bias = true, z = true, residual = true;
  double mean = 0;  // of x

  std::string name() const {
    return shape.to_string() + " " + name_of(dtype) + (weight ? " weight" : "") +
           (bias ? " bias" : "") + (z ? " z" : "") + (residual ? " residual" : "");
  }
};

struct NormInputs {
  NormCase shape;
  Tensor x, weight, bias, z, dy, dresidual;

  explicit NormInputs(const NormCase& c, DType x_dtype, std::uint64_t seed = 1) : shape(c) {
    Random random(seed);
    x = random.tensor(c.shape, x_dtype, [&] { return c.mean + random.normal(); });
    if (c.weight) weight = random.normal_tensor({c.shape.back()});
    if (c.bias) bias = random.normal_tensor({c.shape.back()});
    if (c.z) z = random.normal_tensor(c.shape, c.dtype);
    dy = random.normal_tensor(c.shape, c.dtype);
    if (c.residual) dresidual = random.normal_tensor(c.shape);
  }
  Norm norm(bool centred) const {
    const auto channels = static_cast<std::size_t>(shape.shape.back());
    Norm norm{values(x).size() / channels,
              channels,
              values(x),
              optional_values(weight),
              {},
              {},
              values(dy),
              {},
              centred};
    if (centred) {
      norm.bias = optional_values(bias);
      norm.z = optional_values(z);
    } else {
      norm.dresidual = optional_values(dresidual);
    }
    return norm;
  }
};

const std::vector<Shape>& norm_shapes() {
  static const std::vector<Shape> list{{2, 5, 17}, {1, 1, 1},  {3, 2},      {4, 16},
                                       {2, 3, 33}, {7, 1, 64}, {2, 2, 300}, {5}};
  return list;
}

void expect_layer_norm(const NormCase& c, Device device) {
  const NormInputs host(c, c.dtype);
  const NormGrads expected = gradient(host.norm(true));
  each_backend(device, [&] {
    const std::int64_t pad = c.shape.rank() > 1 ? 3 : 0;
    const Padded x(host.x, device, pad), dy(host.dy, device, pad);
    const Tensor weight = host.weight.to(device), bias = host.bias.to(device),
                 z = host.z.to(device);
    const Guarded y(c.shape, c.dtype, device, pad), dx(c.shape, c.dtype, device, pad),
        dz(c.shape, c.dtype, device, pad);
    const Guarded dweight({c.shape.back()}, DType::f32, device),
        dbias({c.shape.back()}, DType::f32, device);
    Stream stream(device, 2);
    LayerNorm forward;
    forward.x = x.view();
    forward.weight = weight;
    forward.bias = bias;
    forward.z = z;
    forward.y = y.view();
    run(forward, stream);
    LayerNormGrad op;
    op.x = x.view();
    op.weight = weight;
    op.bias = bias;
    op.z = z;
    op.dy = dy.view();
    op.dx = dx.view();
    if (c.z) op.dz = dz.view();
    if (c.weight) op.dweight = dweight.view();
    if (c.bias) op.dbias = dbias.view();
    run(op, stream);
    stream.synchronize();
    expect_within(y.view(), expected.y, c.name() + ": y");
    expect_within(dx.view(), expected.dx, c.name() + ": dx");
    if (c.z) expect_within(dz.view(), expected.dz, c.name() + ": dz");
    if (c.weight) expect_within(dweight.view(), expected.dweight, c.name() + ": dweight");
    if (c.bias) expect_within(dbias.view(), expected.dbias, c.name() + ": dbias");
    for (const Guarded* output : {&y, &dx, &dz, &dweight, &dbias}) {
      output->expect_untouched(c.name());
    }
  });
}

void expect_rms_norm(const NormCase& c, DType sum_dtype, Device device) {
  const NormInputs host(c, sum_dtype);
  const NormGrads expected = gradient(host.norm(false));
  each_backend(device, [&] {
    const std::int64_t pad = c.shape.rank() > 1 ? 3 : 0;
    const Padded sum(host.x, device, pad), dy(host.dy, device, pad);
    const Tensor weight = host.weight.to(device);
    const Guarded dx(c.shape, c.dtype, device, pad);
    const Guarded dweight({c.shape.back()}, DType::f32, device);
    Tensor dresidual = host.dresidual.to(device);
    Stream stream(device, 2);
    AddRmsNormGrad op;
    op.sum = sum.view();
    op.weight = weight;
    op.dy = dy.view();
    op.dresidual = dresidual ? TensorView(dresidual) : TensorView();
    op.dx = dx.view();
    if (c.weight) op.dweight = dweight.view();
    run(op, stream);
    stream.synchronize();
    expect_within(dx.view(), expected.dx, c.name() + ": dx");
    if (c.residual) expect_within(dresidual, expected.dx, c.name() + ": dresidual");
    if (c.weight) expect_within(dweight.view(), expected.dweight, c.name() + ": dweight");
    dx.expect_untouched(c.name());
    dweight.expect_untouched(c.name());
  });
}

TEST(NormGrad, ReferenceIsTheDerivativeOfTheForwardReference) {
  for (const bool centred : {true, false}) {
    for (int choice = 0; choice < 16; ++choice) {
      NormCase c;
      c.shape = {2, 5};
      c.weight = choice & 1;
      c.bias = choice & 2;
      c.z = choice & 4;
      c.residual = choice & 8;
      Norm norm = NormInputs(c, DType::f32, static_cast<std::uint64_t>(choice)).norm(centred);
      const NormGrads result = gradient(norm);
      const auto loss = [&] { return norm.loss(); };
      SCOPED_TRACE(c.name());
      expect_derivative("x", norm.x, result.dx, loss);
      expect_derivative("weight", norm.weight, result.dweight, loss);
      expect_derivative("bias", norm.bias, result.dbias, loss);
      expect_derivative("z", norm.z, result.dz, loss);
    }
  }
}

TEST_EACH(LayerNorm, AndItsGradientMatchTheReference, Device device, DType dtype) {
  NormCase c;
  c.dtype = dtype;
  for (const Shape& shape : norm_shapes()) {
    c.shape = shape;
    expect_layer_norm(c, device);
  }
  c.shape = {3, 40};
  for (int choice = 0; choice < 8; ++choice) {
    c.weight = choice & 1;
    c.bias = choice & 2;
    c.z = choice & 4;
    expect_layer_norm(c, device);
  }
}

// A variance from a difference of squares would be lost in a large mean.
TEST_EACH(LayerNorm, AMeanFarFromZero, Device device) {
  NormCase c;
  c.shape = {4, 100};
  c.mean = 1000;
  expect_layer_norm(c, device);
}

TEST_EACH(LayerNorm, YMayBeXOrZ, Device device) {
  NormCase c;
  const NormInputs host(c, c.dtype);
  const Tensor weight = host.weight.to(device);
  const auto run_into = [&](int place) {
    Tensor x = host.x.to(device), z = host.z.to(device), y(c.shape, c.dtype, device);
    LayerNorm op;
    op.x = x;
    op.z = z;
    op.weight = weight;
    op.y = place == 0 ? y : place == 1 ? x : z;
    run(op, default_stream(device));
    default_stream(device).synchronize();
    return bits(op.y);
  };
  EXPECT_EQ(run_into(1), run_into(0));
  EXPECT_EQ(run_into(2), run_into(0));
}

TEST_EACH(AddRmsNormGrad, MatchesTheReference, Device device, DType dtype) {
  NormCase c;
  c.dtype = dtype;
  for (const Shape& shape : norm_shapes()) {
    c.shape = shape;
    for (const DType sum_dtype : {DType::f32, dtype}) expect_rms_norm(c, sum_dtype, device);
  }
  c.shape = {3, 40};
  for (int choice = 0; choice < 4; ++choice) {
    c.weight = choice & 1;
    c.residual = choice & 2;
    expect_rms_norm(c, DType::f32, device);
  }
}

TEST_EACH(NormGrad, AccumulateAndSameBitsTwice, Device device) {
  NormCase c;
  c.shape = {3000, 70};
  const NormInputs host(c, c.dtype);
  const Tensor x = host.x.to(device), weight = host.weight.to(device), bias = host.bias.to(device),
               z = host.z.to(device), dy = host.dy.to(device);
  Tensor dx(c.shape, c.dtype, device), dz(c.shape, c.dtype, device);
  Tensor dweight({70}, DType::f32, device), dbias({70}, DType::f32, device),
      rms_dweight({70}, DType::f32, device);
  const auto run_all = [&](bool accumulate) {
    Stream stream(device, 2);
    LayerNormGrad op;
    op.x = x;
    op.weight = weight;
    op.bias = bias;
    op.z = z;
    op.dy = dy;
    op.dx = dx;
    op.dz = dz;
    op.dweight = dweight;
    op.dbias = dbias;
    op.accumulate = accumulate;
    run(op, stream);
    AddRmsNormGrad rms;
    rms.sum = x;
    rms.weight = weight;
    rms.dy = dy;
    rms.dx = dx;
    rms.dweight = rms_dweight;
    rms.accumulate = accumulate;
    run(rms, stream);
    stream.synchronize();
  };
  run_all(false);
  const auto weight_bits = bits(dweight), bias_bits = bits(dbias), rms_bits = bits(rms_dweight);
  const std::vector<double> once = values(dweight);
  run_all(false);
  EXPECT_EQ(bits(dweight), weight_bits);
  EXPECT_EQ(bits(dbias), bias_bits);
  EXPECT_EQ(bits(rms_dweight), rms_bits);
  run_all(true);
  const std::vector<double> twice = values(dweight);
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], 2 * once[i]);
}

TEST_EACH(NormGrad, NoRowsGiveZeroWeightGradients, Device device) {
  const Tensor x({2, 0, 5}, DType::f32, device), weight = Tensor::zeros({5}, DType::f32, device);
  Tensor dx({2, 0, 5}, DType::f32, device), dweight({5}, DType::f32, device);
  AddRmsNormGrad op;
  op.sum = x;
  op.weight = weight;
  op.dy = x;
  op.dx = dx;
  op.dweight = dweight;
  run(op, default_stream(device));
  EXPECT_EQ(values(dweight), std::vector<double>(5, 0.0));
}

TEST(NormGrad, ErrorsNameTheOperand) {
  Stream& stream = default_stream();
  Tensor x({2, 5}, DType::f32), dx({2, 5}, DType::f32), weight({5}, DType::f32);
  Tensor narrow({4}, DType::f32);
  LayerNorm norm;
  norm.x = x;
  expect_error<ArgumentError>("layer_norm: y: expected a tensor, got none",
                              [&] { run(norm, stream); });
  norm.y = dx;
  norm.weight = narrow;
  expect_error<ArgumentError>("layer_norm: weight: expected [5], got [4]",
                              [&] { run(norm, stream); });
  LayerNormGrad grad;
  grad.x = grad.dy = x;
  grad.dx = dx;
  grad.dweight = weight;
  expect_error<ArgumentError>(
      "layer_norm_grad: dweight: expected none (there is no weight), got a tensor",
      [&] { run(grad, stream); });
  grad.weight = weight;
  grad.dz = dx;
  expect_error<ArgumentError>("layer_norm_grad: dz: expected none (there is no z), got a tensor",
                              [&] { run(grad, stream); });
  AddRmsNormGrad rms;
  rms.dy = x;
  expect_error<ArgumentError>("add_rms_norm_grad: sum: expected a tensor, got none",
                              [&] { run(rms, stream); });
  rms.sum = x;
  rms.epsilon = -1;
  expect_error<ArgumentError>(
      "add_rms_norm_grad: epsilon: expected a finite number of at least 0, got -1",
      [&] { run(rms, stream); });
}

}  // namespace
}  // namespace mamba::testing
