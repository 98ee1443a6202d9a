// SsdGrad against the reference, and the reference against finite differences. What it promises
// about cuts, resets and bits is in ssd_grad_bits_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/ssd_grad_inputs.hpp"
#include "ops/targets.hpp"

namespace mamba::testing {
namespace {

void expect_matches_reference(const SsdGradInputs& host, Device device,
                              std::int64_t chunk_steps = 0) {
  const SsdCase& c = host.shape();
  const SsdGradients out(c, device);
  run_both(host.to(device), out, default_stream(device), chunk_steps);
  expect_gradients(out, reference(host, device), c, c.name() + " on " + device.name());
}
void expect_matches_reference(const SsdCase& c, Device device, std::uint64_t seed = 1) {
  expect_matches_reference(SsdGradInputs(c, seed), device);
}

std::vector<float> floats(const ConstTensorView& view) {
  const std::vector<double> all = values(view);
  return {all.begin(), all.end()};
}

// ---- the reference itself ----------------------------------------------------------------------

TEST(SsdGrad, ReferenceIsTheDerivativeOfTheForwardReference) {
  for (int choice = 0; choice < 32; ++choice) {
    SsdCase c;
    c.time = 7;
    c.heads = 4;
    c.head_dim = 2;
    c.groups = 2;
    c.d_state = 3;
    c.D = choice & 1;
    c.softplus = choice & 2;
    c.dt_bias = choice & 4;
    c.reset = choice & 8;
    if (choice & 16) c.dt_low = 0.25f;
    if (choice & 16) c.dt_high = 0.75f;
    SsdGradInputs inputs(c, static_cast<std::uint64_t>(choice + 1));
    if (c.reset) inputs.ssd.reset = resets_at({2, 5}, c.batch, c.time);
    SsdReference ssd(inputs.ssd.op());
    const SsdLoss loss{values(inputs.dy_view()), values(inputs.dfinal)};
    const SsdGradResult result = SsdGradReference(ssd, loss).result();
    const auto check = [&](const char* name, std::vector<double>& operand,
                           const std::vector<Bounded>& gradient) {
      SCOPED_TRACE("choice " + std::to_string(choice));
      expect_derivative(name, operand, gradient, [&] { return loss(ssd); });
    };
    check("x", ssd.x, result.dx);
    check("dt", ssd.dt, result.ddt);
    check("A_log", ssd.A_log, result.dA_log);
    check("B", ssd.B, result.dB);
    check("C", ssd.C, result.dC);
    check("D", ssd.D, result.dD);
    check("dt_bias", ssd.dt_bias, result.ddt_bias);
    check("initial_state", ssd.initial, result.dinitial);
  }
}

// ---- against the reference ---------------------------------------------------------------------

TEST_EACH(SsdGrad, MatchesReferenceForEveryShape, Device device, DType dtype) {
  struct Sizes {
    std::int64_t heads, head_dim, groups, d_state;
  };
  for (const Sizes& s :
       {Sizes{4, 64, 1, 128}, Sizes{6, 8, 3, 16}, Sizes{4, 80, 2, 128}, Sizes{3, 32, 1, 16},
        Sizes{5, 1, 1, 16}, Sizes{2, 1, 2, 1}, Sizes{3, 7, 1, 5}, Sizes{2, 17, 2, 100},
        Sizes{1, 256, 1, 256}, Sizes{35, 4, 1, 8}, Sizes{4, 128, 4, 64}, Sizes{2, 33, 1, 17}}) {
    for (const std::int64_t time : {3, 70}) {
      SsdCase c;
      c.batch = time == 70 ? 1 : 2;
      c.time = time;
      c.heads = s.heads;
      c.head_dim = s.head_dim;
      c.groups = s.groups;
      c.d_state = s.d_state;
      c.dtype = dtype;
      c.aligned = time == 70;
      expect_matches_reference(c, device);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(SsdGrad, MatchesReferenceForEveryTime, Device device, DType dtype) {
  for (const std::int64_t time : {0, 1, 2, 7, 15, 16, 33, 63, 64, 65, 128, 130, 257, 600}) {
    for (const bool reset : {false, true}) {
      SsdCase c;
      c.time = time;
      c.head_dim = 10;
      c.d_state = 5;
      c.dtype = dtype;
      c.reset = reset;
      expect_matches_reference(c, device, static_cast<std::uint64_t>(time));
    }
  }
}

TEST_EACH(SsdGrad, MatchesReferenceForEveryChoiceOfOptions, Device device, DType dtype) {
  for (int choice = 0; choice < 64; ++choice) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 70;
    c.d_state = 7;
    c.D = choice & 1;
    c.dt_bias = choice & 2;
    c.initial = choice & 4;
    c.reset = choice & 8;
    c.softplus = choice & 16;
    if (choice & 32) c.dt_low = 0.25f;
    if (choice & 32) c.dt_high = 0.75f;
    expect_matches_reference(c, device, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(SsdGrad, MatchesReferenceOnEveryTarget, DType dtype) {
  for_each_target([&](const char*) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 150;
    c.head_dim = 39;
    c.d_state = 18;
    c.reset = true;
    expect_matches_reference(c, Device::cpu());
  });
}

TEST(SsdGrad, TakesAnyChunkLengthOnTheCpu) {
  for (const std::int64_t chunk_steps : {1, 5, 16, 63, 64, 65, 70, 128, 200, 1000}) {
    for (const bool reset : {false, true}) {
      SsdCase c;
      c.time = 200;
      c.reset = reset;
      expect_matches_reference(SsdGradInputs(c, 3), Device::cpu(), chunk_steps);
    }
  }
}

TEST_EACH(SsdGrad, LongSequenceMatchesReference, Device device) {
  SsdCase c;
  c.batch = 1;
  c.time = 4097;
  c.d_state = 8;
  expect_matches_reference(c, device);
}

// dt far below zero: the state and its gradient last, and softplus is its own exponential.
TEST_EACH(SsdGrad, LongMemoryMatchesReference, Device device) {
  for (const double dt : {-10.0, -20.0}) {
    SsdCase c;
    c.time = 300;
    SsdGradInputs host(c);
    Random random(5);
    host.ssd.dt_bias = random.uniform_tensor({c.heads}, dt - 1e-3, dt);
    expect_matches_reference(host, device);
  }
}

TEST_EACH(SsdGrad, LargeInputsStayFinite, Device device) {
  SsdCase c;
  c.time = 100;
  SsdGradInputs host(c);
  Random random(3);
  const auto extreme = [&] { return random.integer(0, 1) != 0 ? 100.0 : -100.0; };
  host.ssd.xBC = random.tensor(host.ssd.xBC.shape(), c.dtype, extreme);
  host.ssd.dt = random.tensor(host.ssd.dt.shape(), c.dtype, extreme);
  const SsdGradients out(c, device);
  run_both(host.to(device), out, default_stream(device));
  for (const auto& [name, output] : out.all()) {
    for (double value : values(output->view())) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

// Offsets of steps past 2^31 elements. On the CPU what is never touched takes no memory.
TEST_EACH(SsdGrad, OffsetsPastTwoToThe31, Device device) {
  SsdCase c;
  c.batch = 1;
  c.time = 17;
  c.dtype = DType::bf16;
  const SsdGradInputs host(c);
  const std::int64_t apart = (std::int64_t{1} << 27) + 8;  // 16 of them are past 2^31
  Tensor wide;
  try {
    wide = Tensor({1, c.time, apart}, c.dtype, device);
  } catch (const std::exception&) {
    GTEST_SKIP() << "too little memory";
  }
  const SsdGradients out(c, device);
  Stream& stream = default_stream(device);
  run_both(host.to(device), out, stream, 0, [&](SsdGrad op, Stream& on) {
    const TensorView x = wide.view().columns(8, c.channels());
    copy(op.x, x, on);
    op.x = x;
    op.dx = wide.view().columns(40, c.channels());
    op.dB = wide.view().columns(72, c.d_state);
    op.dC = wide.view().columns(96, c.d_state);
    run(op, on);
    copy(op.dx, out.dx.view(), on);
    copy(op.dB, out.dB.view(), on);
    copy(op.dC, out.dC.view(), on);
  });
  expect_gradients(out, reference(host, device), c, "far apart");
}

// The bound means something: states kept in bf16 are outside it.
TEST_EACH(SsdGrad, BoundRejects16BitStates, Device device) {
  SsdCase c;
  c.time = 5;
  const SsdGradInputs host(c);
  const SsdGradients out(c, device);
  run_both(host.to(device), out, default_stream(device), 0, [&](SsdGrad op, Stream& on) {
    const Tensor dense = Tensor::from(floats(op.chunk_states), op.chunk_states.shape());
    const Tensor rounded = dense.to(Device::cpu(), DType::bf16).to(Device::cpu(), DType::f32);
    const Tensor states = rounded.to(device);
    op.chunk_states = states;
    run(op, on);
    on.synchronize();
  });
  const SsdGradResult expected = reference(host, device);
  const std::vector<double> dC = values(out.dC.view());
  std::size_t outside = 0;
  for (std::size_t i = 0; i < dC.size(); ++i) {
    const double allowed = expected.dC[i].bound + f32_roundoff * std::abs(expected.dC[i].value);
    outside += std::abs(dC[i] - expected.dC[i].value) > allowed ? 1 : 0;
  }
  EXPECT_GT(outside, dC.size() / 2);
}

// dlog a of a step is also what the outputs and the inputs from it on have to do with the state:
// sums of dy . (y - D x) - delta x . dh B, and <dfinal, final state>. With A = -1 and one head that
// is what dA_log sums, each step times its delta.
TEST_EACH(SsdGrad, DecaysLearnWhatOutputsAndInputsTell, Device device) {
  SsdCase c;
  c.batch = 1;
  c.time = 130;
  c.heads = 1;
  c.D = c.dt_bias = false;
  c.softplus = false;
  c.dt_low = 0.01f;  // dx is then delta dh B
  SsdGradInputs host(c);
  host.ssd.A_log = Tensor::zeros({1}, DType::f32);
  const SsdGradients out(c, device);
  run_both(host.to(device), out, default_stream(device));
  const SsdInputs there = host.ssd.to(device);
  const SsdOutputs forward = run_ssd(SsdWay{device, host::plan(there.op())}, there.op());
  const auto sum = [](const std::vector<double>& a, const std::vector<double>& b, std::size_t first,
                      std::size_t count) {
    double all = 0;
    for (std::size_t i = first; i < first + count; ++i) all += a[i] * b[i];
    return all;
  };
  const std::vector<double> dy = values(host.dy_view()), y = values(forward.y);
  const std::vector<double> x = values(host.ssd.op().x), dx = values(out.dx.view());
  const std::vector<double> dt = values(host.ssd.op().dt);
  const std::vector<double> dfinal = values(host.dfinal), final_state = values(forward.final_state);
  double dlog_a = sum(dfinal, final_state, 0, dfinal.size()), dA_log = 0, magnitude = 0;
  const auto width = static_cast<std::size_t>(c.head_dim);
  for (auto t = static_cast<std::size_t>(c.time); t-- > 0;) {
    dlog_a += sum(dy, y, t * width, width) - sum(x, dx, t * width, width);
    dA_log -= std::max(dt[t], double{c.dt_low}) * dlog_a;
    magnitude += std::abs(dt[t] * dlog_a);
  }
  EXPECT_NEAR(values(out.dA_log.view())[0], dA_log, 1e-4 * magnitude);
}

}  // namespace
}  // namespace mamba::testing
