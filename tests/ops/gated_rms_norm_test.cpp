// GatedRmsNorm and its gradient against loops in double, those against finite differences.
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

struct GatedCase {
  Shape shape{2, 5, 24};
  std::int64_t groups = 1;
  bool gate_first = true;
  DType dtype = DType::f32;
  bool norm = true;

  std::string name() const {
    if (!norm) return shape.to_string() + ", no norm";
    return shape.to_string() + ", " + std::to_string(groups) + " groups, gate " +
           (gate_first ? "first" : "last");
  }
};

// The operands of one call in double.
struct Gated {
  std::size_t rows, channels, groups;
  bool gate_first, normed;
  std::vector<double> x, z, weight, dy;

  struct Group {
    std::vector<Tracked> normed;  // what is scaled
    Tracked scale;
  };
  Group group(std::size_t first) const {
    const std::size_t size = channels / groups;
    Group group;
    TrackedSum squares;
    for (std::size_t i = first; i < first + size; ++i) {
      group.normed.push_back(gate_first ? Tracked(x[i]) * silu(z[i]) : Tracked(x[i]));
      squares.add(group.normed.back() * group.normed.back());
    }
    group.scale = norm_scale(squares, size, epsilon);
    return group;
  }
  // f(group, place in it, place in the tensors, channel)
  template <class F>
  void each(F f) const {
    const std::size_t size = channels / groups;
    for (std::size_t first = 0; first < rows * channels; first += size) {
      const Group one = group(first);
      for (std::size_t k = 0; k < size; ++k) f(one, k, first + k, (first + k) % channels);
    }
  }
  Tracked y(const Group& group, std::size_t k, std::size_t i, std::size_t c) const {
    if (!normed) return Tracked(x[i]) * silu(z[i]);
    const Tracked v = group.normed[k] * group.scale * Tracked(weight[c]);
    return gate_first ? v : v * silu(z[i]);
  }
  double loss() const {
    double total = 0;
    each([&](const Group& group, std::size_t k, std::size_t i, std::size_t c) {
      total += dy[i] * y(group, k, i, c).value;
    });
    return total;
  }
};

struct GatedGrads {
  std::vector<Bounded> y, dx, dz, dweight;
};

GatedGrads gradient(const Gated& norm) {
  GatedGrads out;
  std::vector<TrackedSum> dweight(norm.channels);
  const std::size_t size = norm.channels / norm.groups;
  TrackedSum product;  // of the group at hand
  norm.each([&](const Gated::Group& group, std::size_t k, std::size_t i, std::size_t c) {
    const auto arriving = [&](std::size_t place) {
      const Tracked g = norm.dy[place];
      return norm.gate_first ? g : g * silu(norm.z[place]);
    };
    if (k == 0) {
      product = {};
      for (std::size_t j = 0; j < size; ++j) {
        product.add(arriving(i + j) * Tracked(norm.weight[c + j]) * group.normed[j]);
      }
    }
    const Tracked g = arriving(i), w(norm.weight[c]), x(norm.x[i]);
    out.y.push_back(norm.y(group, k, i, c));
    if (!norm.normed) {
      const Tracked dy(norm.dy[i]);
      out.dx.push_back(dy * silu(norm.z[i]));
      out.dz.push_back(dy * x * silu_slope(norm.z[i]));
      return;
    }
    const Tracked share(1 / static_cast<double>(size));
    const Tracked pull = static_cast<Tracked>(product) * share * group.scale * group.scale;
    const Tracked dv = (g * w - group.normed[k] * pull) * group.scale;
    out.dx.push_back(norm.gate_first ? dv * silu(norm.z[i]) : dv);
    out.dz.push_back((norm.gate_first ? dv * x : Tracked(norm.dy[i]) * (x * group.scale * w)) *
                     silu_slope(norm.z[i]));
    dweight[c].add(g * (group.normed[k] * group.scale));
  });
  out.dweight = bounded(dweight);
  return out;
}

struct GatedInputs {
  Tensor x, z, weight, dy;

  explicit GatedInputs(const GatedCase& c, std::uint64_t seed = 1) {
    Random random(seed);
    x = random.normal_tensor(c.shape, c.dtype);
    z = random.normal_tensor(c.shape, c.dtype);
    weight = random.normal_tensor({c.shape.back()});
    dy = random.normal_tensor(c.shape, c.dtype);
  }
  Gated norm(const GatedCase& c) const {
    const auto channels = static_cast<std::size_t>(c.shape.back());
    return {values(x).size() / channels,
            channels,
            static_cast<std::size_t>(c.groups),
            c.gate_first,
            c.norm,
            values(x),
            values(z),
            values(weight),
            values(dy)};
  }
};

// What both operations have.
template <class Op>
Op op_of(const GatedCase& c, const ConstTensorView& x, const ConstTensorView& z,
         const Tensor& weight) {
  Op op;
  op.x = x;
  op.z = z;
  if (c.norm) op.weight = weight;
  op.groups = c.groups;
  op.norm = c.norm;
  op.gate_first = c.gate_first;
  return op;
}

void expect_gated_norm(const GatedCase& c, Device device) {
  const GatedInputs host(c);
  const GatedGrads expected = gradient(host.norm(c));
  each_backend(device, [&] {
    // Where channels come in fours, so do rows, for kernels that take them so.
    const std::int64_t pad = c.shape.rank() == 1 ? 0 : c.shape.back() % 4 == 0 ? 8 : 3;
    const Padded x(host.x, device, pad), z(host.z, device, pad), dy(host.dy, device, pad);
    const Tensor weight = host.weight.to(device);
    const Guarded y(c.shape, c.dtype, device, pad), dx(c.shape, c.dtype, device, pad),
        dz(c.shape, c.dtype, device, pad);
    const Guarded dweight({c.shape.back()}, DType::f32, device);
    Stream stream(device, 2);
    auto forward = op_of<GatedRmsNorm>(c, x.view(), z.view(), weight);
    forward.y = y.view();
    run(forward, stream);
    auto op = op_of<GatedRmsNormGrad>(c, x.view(), z.view(), weight);
    op.dy = dy.view();
    op.dx = dx.view();
    op.dz = dz.view();
    if (c.norm) op.dweight = dweight.view();
    run(op, stream);
    stream.synchronize();
    expect_within(y.view(), expected.y, c.name() + ": y");
    expect_within(dx.view(), expected.dx, c.name() + ": dx");
    expect_within(dz.view(), expected.dz, c.name() + ": dz");
    if (c.norm) expect_within(dweight.view(), expected.dweight, c.name() + ": dweight");
    for (const Guarded* output : {&y, &dx, &dz, &dweight}) output->expect_untouched(c.name());
    if (!c.norm) return;
    // Accumulating adds the same once more.
    op.accumulate = true;
    run(op, stream);
    stream.synchronize();
    std::vector<Bounded> twice = expected.dweight;
    for (Bounded& one : twice) {
      one.value *= 2;
      one.bound = 2 * one.bound + std::abs(one.value) * f32_roundoff;
    }
    expect_within(dweight.view(), twice, c.name() + ": dweight twice");
  });
}

TEST(GatedRmsNorm, ReferenceIsTheDerivativeOfTheForwardReference) {
  for (const bool gate_first : {true, false}) {
    for (const std::int64_t groups : {1, 3}) {
      GatedCase c;
      c.shape = {2, 6};
      c.groups = groups;
      c.gate_first = gate_first;
      Gated norm = GatedInputs(c, 7).norm(c);
      const GatedGrads result = gradient(norm);
      const auto loss = [&] { return norm.loss(); };
      SCOPED_TRACE(c.name());
      expect_derivative("x", norm.x, result.dx, loss);
      expect_derivative("z", norm.z, result.dz, loss);
      expect_derivative("weight", norm.weight, result.dweight, loss);
    }
  }
  GatedCase c;
  c.norm = false;
  Gated gate = GatedInputs(c, 7).norm(c);
  const GatedGrads result = gradient(gate);
  const auto loss = [&] { return gate.loss(); };
  expect_derivative("x without norm", gate.x, result.dx, loss);
  expect_derivative("z without norm", gate.z, result.dz, loss);
}

TEST_EACH(GatedRmsNorm, AndItsGradientMatchTheReference, Device device, DType dtype) {
  GatedCase c;
  c.dtype = dtype;
  for (const Shape& shape :
       {Shape{2, 5, 24}, Shape{1, 1, 1}, Shape{4, 16}, Shape{3, 33}, Shape{7, 1, 64},
        Shape{2, 2, 300}, Shape{5, 1536}, Shape{3, 5, 40}, Shape{12}}) {
    c.shape = shape;
    for (const std::int64_t groups : {1, 3, 4}) {
      c.groups = groups;
      for (const bool gate_first : {true, false}) {
        c.gate_first = gate_first;
        if (shape.back() % groups == 0) expect_gated_norm(c, device);
      }
    }
    c.groups = 1;
    c.norm = false;
    expect_gated_norm(c, device);
    c.norm = true;
  }
}

TEST_EACH(GatedRmsNorm, YMayBeXOrZAndDxMayBeDyOrX, Device device) {
  GatedCase c;
  c.groups = 3;
  const GatedInputs host(c);
  const Tensor weight = host.weight.to(device);
  const auto forward_into = [&](int place) {
    Tensor x = host.x.to(device), z = host.z.to(device), y(c.shape, c.dtype, device);
    auto op = op_of<GatedRmsNorm>(c, x, z, weight);
    op.y = place == 0 ? y : place == 1 ? x : z;
    run(op, default_stream(device));
    default_stream(device).synchronize();
    return bits(op.y);
  };
  const auto backward_into = [&](int place) {
    Tensor x = host.x.to(device), dy = host.dy.to(device), dx(c.shape, c.dtype, device),
           dz(c.shape, c.dtype, device);
    const Tensor z = host.z.to(device);
    auto op = op_of<GatedRmsNormGrad>(c, x, z, weight);
    op.dy = dy;
    op.dx = place == 0 ? dx : place == 1 ? dy : x;
    op.dz = dz;
    run(op, default_stream(device));
    default_stream(device).synchronize();
    return std::pair(bits(op.dx), bits(dz));
  };
  for (const int place : {1, 2}) {
    for (const auto& [gate_first, norm] :
         {std::pair(true, true), std::pair(false, true), std::pair(true, false)}) {
      c.gate_first = gate_first;
      c.norm = norm;
      EXPECT_EQ(forward_into(place), forward_into(0));
      EXPECT_EQ(backward_into(place), backward_into(0));
    }
  }
}

TEST_EACH(GatedRmsNorm, HasAWeightIfAndOnlyIfThereIsANorm, Device device) {
  const Tensor x = Tensor::zeros({2, 6}, DType::f32, device);
  const Tensor weight = Tensor::zeros({6}, DType::f32, device);
  Tensor y({2, 6}, DType::f32, device), dz({2, 6}, DType::f32, device),
      dweight({6}, DType::f32, device);
  const auto refused = [&](auto op, const std::string& text) {
    expect_error<ArgumentError>(text, [&] { run(op, default_stream(device)); });
  };
  GatedRmsNorm op;
  op.x = op.z = x;
  op.y = y;
  refused(op, "gated_rms_norm: weight: expected a tensor, got none");
  op.norm = false;
  op.weight = weight;
  refused(op, "gated_rms_norm: weight: expected none (there is no norm), got a tensor");
  GatedRmsNormGrad grad;
  grad.x = grad.z = grad.dy = x;
  grad.dx = y;
  grad.dz = dz;
  grad.norm = false;
  grad.weight = weight;
  refused(grad, "gated_rms_norm_grad: weight: expected none (there is no norm), got a tensor");
  grad.weight = {};
  grad.dweight = dweight;
  refused(grad, "gated_rms_norm_grad: dweight: expected none (there is no weight), got a tensor");
}

TEST_EACH(GatedRmsNorm, GroupsDivideTheChannels, Device device) {
  const Tensor x = Tensor::zeros({2, 6}, DType::f32, device);
  const Tensor weight = Tensor::zeros({6}, DType::f32, device);
  Tensor y({2, 6}, DType::f32, device);
  GatedRmsNorm op;
  op.x = x;
  op.z = x;
  op.weight = weight;
  op.y = y;
  for (const std::int64_t groups : {0, -1, 4, 12}) {
    op.groups = groups;
    expect_error<ArgumentError>(
        "gated_rms_norm: groups: expected a divisor of 6 channels, got " + std::to_string(groups),
        [&] { run(op, default_stream(device)); });
  }
}

}  // namespace
}  // namespace mamba::testing
