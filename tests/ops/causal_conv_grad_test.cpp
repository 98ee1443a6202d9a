// CausalConvGrad against loops in double, those against finite differences, and what it promises
// about cuts, resets and bits.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <mamba/grad_ops.hpp>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/conv_inputs.hpp"
#include "ops/targets.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {
namespace {

// The operands in double.
struct ConvReference {
  std::size_t batch, time, channels, width;
  bool silu_after;
  std::vector<double> x, weight, bias, initial, dy, dfinal;
  std::vector<std::int32_t> reset;

  ConvReference(const CausalConv& op, ConstTensorView dy_view, ConstTensorView dfinal_view)
      : batch(static_cast<std::size_t>(op.x.dim(0))),
        time(static_cast<std::size_t>(op.x.dim(1))),
        channels(static_cast<std::size_t>(op.x.dim(2))),
        width(static_cast<std::size_t>(op.weight.dim(1))),
        silu_after(op.silu),
        x(values(op.x)),
        weight(values(op.weight)),
        bias(optional_values(op.bias)),
        initial(optional_values(op.initial_state)),
        dy(values(dy_view)),
        dfinal(optional_values(dfinal_view)),
        reset(optional_integers(op.reset)) {}

  // Where input `back` steps before step t stands: an index into x, or, with `old`, into the
  // initial state; -1 where there is none.
  std::int64_t source(std::size_t b, std::size_t c, std::size_t t, std::size_t back,
                      bool& old) const {
    old = back > t;
    for (std::size_t s = old ? 0 : t - back + 1; s <= t && s < time; ++s) {
      if (!reset.empty() && reset[b * time + s] != 0) return -1;
    }
    if (!old) return static_cast<std::int64_t>((b * time + t - back) * channels + c);
    const std::size_t k = width - 1 + t - back;
    return static_cast<std::int64_t>((b * channels + c) * (width - 1) + k);
  }
  double input(std::size_t b, std::size_t c, std::size_t t, std::size_t back) const {
    bool old = false;
    const std::int64_t i = source(b, c, t, back, old);
    if (i < 0) return 0;
    if (old) return initial.empty() ? 0 : initial[static_cast<std::size_t>(i)];
    return x[static_cast<std::size_t>(i)];
  }
  Tracked sum(std::size_t b, std::size_t c, std::size_t t) const {
    TrackedSum sum;
    if (!bias.empty()) sum.add(bias[c]);
    for (std::size_t k = 0; k < width; ++k) {
      sum.add(Tracked(weight[c * width + k]) * input(b, c, t, width - 1 - k));
    }
    return sum;
  }
  // Input k of the final state: `time` steps are behind it, so it is `back` steps before step time.
  static std::size_t back_of(std::size_t k, std::size_t past) { return past - k; }

  double loss() const {
    double total = 0;
    for (std::size_t b = 0; b < batch; ++b) {
      for (std::size_t c = 0; c < channels; ++c) {
        for (std::size_t t = 0; t < time; ++t) {
          const double p = sum(b, c, t).value;
          total += dy[(b * time + t) * channels + c] * (silu_after ? exact_silu(p) : p);
        }
        for (std::size_t k = 0; k + 1 < width && !dfinal.empty(); ++k) {
          total += dfinal[(b * channels + c) * (width - 1) + k] *
                   input(b, c, time, back_of(k, width - 1));
        }
      }
    }
    return total;
  }
};

struct ConvGradResult {
  std::vector<TrackedSum> dx, dweight, dbias, dinitial;
};

// Every product of the forward pass hands its gradient to both of its factors.
ConvGradResult gradient(const ConvReference& conv) {
  ConvGradResult out;
  out.dx.resize(conv.x.size());
  out.dweight.resize(conv.weight.size());
  out.dbias.resize(conv.channels);
  out.dinitial.resize(conv.batch * conv.channels * (conv.width - 1));
  const auto add = [&](std::size_t b, std::size_t c, std::size_t t, std::size_t back,
                       const Tracked& term) {
    bool old = false;
    const std::int64_t i = conv.source(b, c, t, back, old);
    if (i >= 0) (old ? out.dinitial : out.dx)[static_cast<std::size_t>(i)].add(term);
  };
  for (std::size_t b = 0; b < conv.batch; ++b) {
    for (std::size_t c = 0; c < conv.channels; ++c) {
      for (std::size_t t = 0; t < conv.time; ++t) {
        Tracked g = conv.dy[(b * conv.time + t) * conv.channels + c];
        if (conv.silu_after) {
          const Tracked p = conv.sum(b, c, t);
          g = g * Tracked(silu_slope(p).value, silu_slope(p).bound + 0.5 * p.bound);
        }
        out.dbias[c].add(g);
        for (std::size_t k = 0; k < conv.width; ++k) {
          const std::size_t back = conv.width - 1 - k;
          out.dweight[c * conv.width + k].add(g * conv.input(b, c, t, back));
          add(b, c, t, back, g * conv.weight[c * conv.width + k]);
        }
      }
      for (std::size_t k = 0; k + 1 < conv.width && !conv.dfinal.empty(); ++k) {
        add(b, c, conv.time, ConvReference::back_of(k, conv.width - 1),
            conv.dfinal[(b * conv.channels + c) * (conv.width - 1) + k]);
      }
    }
  }
  return out;
}

struct GradInputs {
  ConvInputs conv;
  Tensor dy, dfinal;

  explicit GradInputs(const ConvCase& c, std::uint64_t seed = 1) : conv(c, seed) {
    Random random(seed + 1000);
    dy = random.normal_tensor({c.batch, c.time, c.channels + 1}, c.dtype);
    if (c.initial) dfinal = random.normal_tensor(conv.state_shape(), c.dtype);
  }
  GradInputs to(Device device) const {
    GradInputs moved(ConvCase{0, 0, 0, 1});
    moved.conv = conv.to(device);
    moved.dy = dy.to(device);
    moved.dfinal = dfinal.to(device);
    return moved;
  }
  ConstTensorView dy_view() const { return dy.view().columns(1, conv.shape.channels); }
  ConvReference reference() const { return {conv.op(), dy_view(), dfinal}; }
};

struct Gradients {
  Guarded dx, dweight, dbias, dinitial;

  Gradients(const ConvCase& c, Device device)
      : dx({c.batch, c.time, c.channels}, c.dtype, device, 3),
        dweight({c.channels, c.width}, DType::f32, device),
        dbias({c.channels}, DType::f32, device),
        dinitial({c.batch, c.channels, c.width - 1}, c.dtype, device) {}
  std::vector<std::pair<const char*, const Guarded*>> all() const {
    return {{"dx", &dx}, {"dweight", &dweight}, {"dbias", &dbias}, {"dinitial", &dinitial}};
  }
};

CausalConvGrad grad_op(const GradInputs& inputs, const Gradients& out) {
  const CausalConv conv = inputs.conv.op();
  CausalConvGrad op;
  op.x = conv.x;
  op.weight = conv.weight;
  op.bias = conv.bias;
  op.initial_state = conv.initial_state;
  op.reset = conv.reset;
  op.silu = conv.silu;
  op.dy = inputs.dy_view();
  op.dfinal_state = inputs.dfinal;
  op.dinitial_state = out.dinitial.view();
  op.dx = out.dx.view();
  op.dweight = out.dweight.view();
  op.dbias = out.dbias.view();
  return op;
}

void expect_gradients(const Gradients& out, const ConvGradResult& expected,
                      const std::string& what) {
  expect_within(out.dx.view(), bounded(expected.dx), what + ": dx");
  expect_within(out.dweight.view(), bounded(expected.dweight), what + ": dweight");
  expect_within(out.dbias.view(), bounded(expected.dbias), what + ": dbias");
  expect_within(out.dinitial.view(), bounded(expected.dinitial), what + ": dinitial");
  for (const auto& [name, output] : out.all()) output->expect_untouched(what + ": " + name);
}

void expect_matches_reference(const ConvCase& c, Device device, std::uint64_t seed = 1) {
  const GradInputs host(c, seed);
  const GradInputs inputs = host.to(device);
  const Gradients out(c, device);
  run(grad_op(inputs, out), default_stream(device));
  expect_gradients(out, gradient(host.reference()), c.name() + " on " + device.name());
}

TEST(CausalConvGrad, ReferenceIsTheDerivativeOfTheForwardReference) {
  for (int choice = 0; choice < 8; ++choice) {
    ConvCase c;
    c.time = 7;
    c.channels = 2;
    c.bias = choice & 1;
    c.silu = choice & 2;
    c.reset = choice & 4;
    const GradInputs inputs(c, static_cast<std::uint64_t>(choice + 1));
    ConvReference conv = inputs.reference();
    const ConvGradResult result = gradient(conv);
    const auto check = [&](const char* name, std::vector<double>& operand,
                           const std::vector<TrackedSum>& sums) {
      SCOPED_TRACE("choice " + std::to_string(choice));
      expect_derivative(name, operand, bounded(sums), [&] { return conv.loss(); });
    };
    check("x", conv.x, result.dx);
    check("weight", conv.weight, result.dweight);
    check("bias", conv.bias, result.dbias);
    check("initial_state", conv.initial, result.dinitial);
  }
}

TEST_EACH(CausalConvGrad, MatchesReferenceForEveryWidthAndShape, Device device, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  for (std::int64_t width : {1, 2, 3, 4, 5, 8, 17}) {
    c.width = width;
    for (std::int64_t time : {1, 2, 3, 4, 9}) {
      c.time = time;
      c.reset = (time + width) % 2 == 0;
      expect_matches_reference(c, device);
    }
  }
  c.width = 4;
  for (std::int64_t channels : {1, 15, 16, 31, 33, 128, 300}) {
    c.channels = channels;
    expect_matches_reference(c, device);
  }
  c.channels = 5;
  c.time = 700;
  expect_matches_reference(c, device);
}

TEST_EACH(CausalConvGrad, MatchesReferenceForEveryChoiceOfOptionalOperands, Device device,
          DType dtype) {
  for (int choice = 0; choice < 16; ++choice) {
    ConvCase c;
    c.dtype = dtype;
    c.time = 35;
    c.bias = choice & 1;
    c.silu = choice & 2;
    c.initial = choice & 4;
    c.reset = choice & 8;
    expect_matches_reference(c, device, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(CausalConvGrad, MatchesReferenceOnEveryTarget, DType dtype) {
  for_each_target([&](const char*) {
    ConvCase c;
    c.dtype = dtype;
    c.channels = 39;
    c.time = 20;
    c.reset = true;
    expect_matches_reference(c, Device::cpu());
  });
}

TEST_EACH(CausalConvGrad, SameBitsTwice, Device device, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  c.time = 1000;
  c.channels = 300;
  c.reset = true;
  const GradInputs inputs = GradInputs(c).to(device);
  const Gradients first(c, device), second(c, device);
  run(grad_op(inputs, first), default_stream(device));
  run(grad_op(inputs, second), default_stream(device));
  for (std::size_t i = 0; i < first.all().size(); ++i) {
    EXPECT_EQ(bits(first.all()[i].second->view()), bits(second.all()[i].second->view()))
        << first.all()[i].first;
  }
}

// The state's gradient goes on in place, weight gradients accumulate. f32: in 16 bits a gradient is
// rounded where it is handed on.
TEST_EACH(CausalConvGrad, CutAnywhereEqualsTheWhole, Device device) {
  for (std::int64_t cut : {0, 1, 2, 3, 4, 5, 17, 29, 30}) {
    ConvCase c;
    c.time = 30;
    c.reset = true;
    const GradInputs host(c, 7);
    const GradInputs inputs = host.to(device);
    Stream& stream = default_stream(device);
    // The state at the cut, by a forward run over the first piece.
    Tensor y({c.batch, cut, c.channels}, c.dtype, device);
    Tensor state(inputs.conv.state_shape(), c.dtype, device);
    CausalConv forward = inputs.conv.op();
    forward.x = forward.x.steps(0, cut);
    forward.reset = forward.reset.columns(0, cut);
    forward.y = y;
    forward.final_state = state;
    run(forward, stream);
    const Gradients out(c, device);
    const CausalConvGrad whole = grad_op(inputs, out);
    copy(inputs.dfinal, out.dinitial.view(), stream);
    for (const bool second : {true, false}) {
      const std::int64_t first = second ? cut : 0, count = second ? c.time - cut : cut;
      CausalConvGrad piece = whole;
      piece.x = whole.x.steps(first, count);
      piece.reset = whole.reset.columns(first, count);
      piece.dy = whole.dy.steps(first, count);
      piece.dx = whole.dx.steps(first, count);
      if (second) piece.initial_state = state;
      piece.dfinal_state = piece.dinitial_state;
      piece.accumulate = !second;
      run(piece, stream);
    }
    stream.synchronize();
    expect_gradients(out, gradient(host.reference()), "cut at " + std::to_string(cut));
  }
}

TEST_EACH(CausalConvGrad, NothingCrossesAReset, Device device) {
  ConvCase c;
  c.time = 20;
  c.batch = 1;
  GradInputs host(c);
  std::vector<std::int32_t> flags(20, 0);
  flags[11] = 1;
  host.conv.reset = Tensor::from(flags, {1, 20});
  const ConvGradResult expected = gradient(host.reference());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t pitch = c.channels + 1;
  for (std::int64_t i = 11 * pitch; i < 20 * pitch; ++i) host.dy.data<float>()[i] = nan;
  for (std::int64_t i = 0; i < host.dfinal.count(); ++i) host.dfinal.data<float>()[i] = nan;
  const GradInputs inputs = host.to(device);
  const Gradients out(c, device);
  run(grad_op(inputs, out), default_stream(device));
  std::vector<Bounded> before = bounded(expected.dx);
  before.resize(static_cast<std::size_t>(11 * c.channels));
  expect_within(out.dx.view().steps(0, 11), before, "dx before the reset");
  expect_within(out.dinitial.view(), bounded(expected.dinitial), "dinitial");
}

TEST_EACH(CausalConvGrad, NothingToDo, Device device) {
  for (const Shape& size : {Shape{2, 0, 5}, Shape{0, 3, 5}, Shape{2, 3, 0}}) {
    ConvCase c;
    c.batch = size[0];
    c.time = size[1];
    c.channels = size[2];
    const GradInputs host(c);
    const GradInputs inputs = host.to(device);
    const Gradients out(c, device);
    run(grad_op(inputs, out), default_stream(device));
    expect_gradients(out, gradient(host.reference()), size.to_string());
  }
}

TEST(CausalConvGrad, ErrorsNameTheOperand) {
  const ConvCase c;
  const GradInputs inputs(c);
  const Gradients out(c, Device::cpu());
  Stream& stream = default_stream();
  const Tensor half = Tensor::zeros({2, 17, 3}, DType::bf16);
  const auto expect = [&](const std::string& text, auto change) {
    CausalConvGrad op = grad_op(inputs, out);
    change(op);
    expect_error<ArgumentError>("causal_conv_grad: " + text, [&] { run(op, stream); });
  };
  expect("dy: expected a tensor, got none", [](auto& op) { op.dy = {}; });
  expect("dx: expected a tensor, got none", [](auto& op) { op.dx = {}; });
  expect("dfinal_state: expected f32, got bf16", [&](auto& op) { op.dfinal_state = half; });
  expect("dweight: expected [17, 4], got [17]", [](auto& op) { op.dweight = op.dbias; });
  expect("dinitial_state: expected [2, 17, 3], got [2, 9, 17]",
         [](auto& op) { op.dinitial_state = op.dx; });
  for (const auto& [name, output] : out.all()) {
    for (double value : values(output->view())) ASSERT_TRUE(std::isnan(value)) << name;
  }
}

}  // namespace
}  // namespace mamba::testing
