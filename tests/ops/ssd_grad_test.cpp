// SsdGrad against the reference, the reference against finite differences, and what it promises
// about cuts, resets and bits.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/ssd_grad_inputs.hpp"
#include "ops/targets.hpp"

namespace mamba::testing {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

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

// ---- cuts, resets, bits ------------------------------------------------------------------------

void expect_same_bits(const SsdGradients& a, const SsdGradients& b, const std::string& what) {
  for (std::size_t i = 0; i < a.all().size(); ++i) {
    EXPECT_EQ(bits(a.all()[i].second->view()), bits(b.all()[i].second->view()))
        << what << ": " << a.all()[i].first;
  }
}

SsdCase case_of_many_heads(DType dtype) {
  SsdCase c;
  c.dtype = dtype;
  c.time = 100;
  c.heads = 42;
  c.groups = 2;
  c.reset = true;
  return c;
}

TEST_EACH(SsdGrad, SameBitsTwice, Device device, DType dtype) {
  const SsdCase c = case_of_many_heads(dtype);
  const SsdGradInputs inputs = SsdGradInputs(c).to(device);
  const SsdGradients first(c, device), second(c, device);
  run_both(inputs, first, default_stream(device));
  run_both(inputs, second, default_stream(device));
  expect_same_bits(first, second, c.name());
}

TEST_EACH(SsdGrad, ThreadsDoNotMatter, DType dtype) {
  const SsdCase c = case_of_many_heads(dtype);
  const SsdGradInputs inputs(c);
  Stream one(Device::cpu(), 1);
  const SsdGradients alone(c, Device::cpu());
  run_both(inputs, alone, one);
  for (const int threads : {2, 3, 7}) {
    Stream several(Device::cpu(), threads);
    const SsdGradients out(c, Device::cpu());
    run_both(inputs, out, several);
    expect_same_bits(out, alone, std::to_string(threads) + " threads");
  }
}

// One piece of the sequence, its gradient going on where the later piece's came out.
struct Piece {
  std::int64_t first, count;
};

// Forward over the pieces in order, backward in reverse with the state's gradient carried in place;
// weight gradients accumulate.
void run_in_pieces(const SsdGradInputs& inputs, const std::vector<Piece>& pieces,
                   const SsdGradients& out, Stream& stream) {
  const SsdCase& c = inputs.shape();
  Tensor state = inputs.ssd.initial.clone(stream);
  Tensor y(inputs.ssd.y_shape(), c.dtype, stream.device());
  std::vector<Tensor> kept;
  std::vector<Ssd> runs;
  for (const Piece& piece : pieces) {
    Ssd ssd = steps_of(inputs.ssd.op(), piece.first, piece.count);
    ssd.initial_state = ssd.final_state = state;
    ssd.y = y.view().steps(piece.first, piece.count);
    ssd.chunk_steps = detail::scan_chunk_steps(ssd, stream);
    const std::int64_t chunks = (piece.count + ssd.chunk_steps - 1) / ssd.chunk_steps;
    kept.emplace_back(Shape{c.batch, chunks, c.channels(), c.d_state}, DType::f32, stream.device());
    ssd.chunk_states = kept.back();
    run(ssd, stream);
    runs.push_back(ssd);
  }
  copy(inputs.dfinal, out.dinitial.view(), stream);
  for (std::size_t i = pieces.size(); i-- > 0;) {
    SsdGrad op = grad_op(runs[i], out);
    for (TensorView* view : {&op.dx, &op.ddt, &op.dB, &op.dC}) {
      *view = view->steps(pieces[i].first, pieces[i].count);
    }
    op.dy = inputs.dy_view().steps(pieces[i].first, pieces[i].count);
    op.dfinal_state = op.dinitial_state;
    op.accumulate = i + 1 < pieces.size();
    run(op, stream);
  }
  stream.synchronize();
}

TEST_EACH(SsdGrad, CutAnywhereEqualsTheWhole, Device device, DType dtype) {
  SsdCase c;
  c.dtype = dtype;
  c.time = 70;
  c.heads = 4;
  c.groups = 2;
  c.d_state = 6;
  c.reset = true;
  const SsdGradInputs host(c, 7);
  const SsdGradResult expected = reference(host, device);
  const SsdGradInputs inputs = host.to(device);
  for (const std::int64_t cut : {0, 1, 31, 63, 64, 69, 70}) {
    const SsdGradients out(c, device);
    run_in_pieces(inputs, {{0, cut}, {cut, c.time - cut}}, out, default_stream(device));
    expect_gradients(out, expected, c, "cut at " + std::to_string(cut));
  }
  std::vector<Piece> steps;
  for (std::int64_t t = 0; t < c.time; ++t) steps.push_back({t, 1});
  const SsdGradients out(c, device);
  run_in_pieces(inputs, steps, out, default_stream(device));
  expect_gradients(out, expected, c, "step by step");
}

// What lies before a reset gets nothing from behind it, whatever is there.
TEST_EACH(SsdGrad, NothingCrossesAReset, Device device, DType dtype) {
  for (const std::int64_t at : {1, 40, 64, 65, 140}) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 150;
    c.batch = 1;
    SsdGradInputs host(c);
    host.ssd.reset = resets_at({at}, 1, c.time);
    const SsdGradResult expected = reference(host, device);
    const auto poison = [&](Tensor& tensor) {
      const TensorView rest = tensor.view().steps(at, c.time - at);
      copy(Random(1).tensor(rest.shape(), dtype, [] { return nan; }), rest, default_stream());
    };
    for (Tensor* tensor : {&host.dy, &host.ssd.xBC, &host.ssd.dt}) poison(*tensor);
    host.dfinal = Random(1).tensor(host.dfinal.shape(), DType::f32, [] { return nan; });
    const SsdGradients out(c, device);
    run_both(host.to(device), out, default_stream(device));
    const auto first = [&](std::vector<Bounded> all, std::int64_t each) {
      all.resize(static_cast<std::size_t>(at * each));
      return all;
    };
    const std::string what = "reset at " + std::to_string(at);
    expect_within(out.dx.view().steps(0, at), first(expected.dx, c.channels()), what + ": dx");
    expect_within(out.ddt.view().steps(0, at), first(expected.ddt, c.heads), what + ": ddt");
    expect_within(out.dB.view().steps(0, at), first(expected.dB, c.d_state), what + ": dB");
    expect_within(out.dC.view().steps(0, at), first(expected.dC, c.d_state), what + ": dC");
    expect_within(out.dinitial.view(), expected.dinitial, what + ": dinitial");
  }
}

TEST_EACH(SsdGrad, NaNBeforeAResetStaysThere, Device device, DType dtype) {
  for (const std::int64_t at : {0, 1, 40, 64, 100}) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 150;
    c.batch = 1;
    SsdGradInputs host(c);
    host.ssd.reset = resets_at({at}, 1, c.time);
    const SsdGradResult expected = reference(host, device);
    const auto poison = [&](Tensor& tensor) {
      const TensorView before = tensor.view().steps(0, at);
      copy(Random(1).tensor(before.shape(), dtype, [] { return nan; }), before, default_stream());
    };
    for (Tensor* tensor : {&host.dy, &host.ssd.xBC, &host.ssd.dt}) poison(*tensor);
    host.ssd.initial = Random(1).tensor(host.ssd.state_shape(), DType::f32, [] { return nan; });
    const SsdGradients out(c, device);
    run_both(host.to(device), out, default_stream(device));
    const auto rest = [&](const std::vector<Bounded>& all, std::int64_t each) {
      return std::vector<Bounded>(all.begin() + at * each, all.end());
    };
    const std::string what = "reset at " + std::to_string(at);
    const std::int64_t count = c.time - at;
    expect_within(out.dx.view().steps(at, count), rest(expected.dx, c.channels()), what + ": dx");
    expect_within(out.ddt.view().steps(at, count), rest(expected.ddt, c.heads), what + ": ddt");
    expect_within(out.dB.view().steps(at, count), rest(expected.dB, c.d_state), what + ": dB");
    expect_within(out.dC.view().steps(at, count), rest(expected.dC, c.d_state), what + ": dC");
    if (at == 0) {
      expect_gradients(out, expected, c, what);
      for (double value : values(out.dinitial.view())) EXPECT_EQ(value, 0);
    }
  }
}

TEST_EACH(SsdGrad, BatchOrderAndCompanyDoNotMatter, Device device) {
  SsdCase c;
  c.time = 100;
  c.heads = 9;
  c.batch = 3;
  const SsdGradInputs inputs = SsdGradInputs(c).to(device);
  const SsdGradients together(c, device);
  run_both(inputs, together, default_stream(device));
  const SsdGradResult expected = reference(SsdGradInputs(c), device);
  expect_gradients(together, expected, c, "together");
  for (std::int64_t b = 0; b < c.batch; ++b) {
    SsdCase one = c;
    one.batch = 1;
    SsdGradInputs alone(one);
    alone.ssd = inputs.ssd.to(device);
    alone.ssd.shape = one;
    for (Tensor* tensor : {&alone.ssd.xBC, &alone.ssd.dt, &alone.ssd.initial}) {
      *tensor = Tensor(tensor->view().rows(b, 1).shape(), DType::f32, device);
    }
    alone.dy = Tensor(inputs.dy.view().rows(b, 1).shape(), DType::f32, device);
    alone.dfinal = Tensor(inputs.dfinal.view().rows(b, 1).shape(), DType::f32, device);
    Stream& stream = default_stream(device);
    copy(inputs.ssd.xBC.view().rows(b, 1), alone.ssd.xBC, stream);
    copy(inputs.ssd.dt.view().rows(b, 1), alone.ssd.dt, stream);
    copy(inputs.ssd.initial.view().rows(b, 1), alone.ssd.initial, stream);
    copy(inputs.dy.view().rows(b, 1), alone.dy, stream);
    copy(inputs.dfinal.view().rows(b, 1), alone.dfinal, stream);
    const SsdGradients out(one, device);
    run_both(alone, out, stream);
    // What is of a row alone; sums over heads are cut by the number of rows.
    EXPECT_EQ(bits(together.dx.view().rows(b, 1)), bits(out.dx.view())) << b;
    EXPECT_EQ(bits(together.ddt.view().rows(b, 1)), bits(out.ddt.view())) << b;
    EXPECT_EQ(bits(together.dinitial.view().rows(b, 1)), bits(out.dinitial.view())) << b;
  }
}

TEST_EACH(SsdGrad, NothingToDo, Device device) {
  for (const Shape& size : {Shape{2, 0}, Shape{0, 3}}) {
    SsdCase c;
    c.batch = size[0];
    c.time = size[1];
    const SsdGradInputs host(c);
    const SsdGradients out(c, device);
    run_both(host.to(device), out, default_stream(device));
    for (const Guarded* output : {&out.dA_log, &out.dD, &out.ddt_bias}) {
      for (double value : values(output->view())) EXPECT_EQ(value, 0) << size.to_string();
    }
    EXPECT_EQ(values(out.dinitial.view()), values(host.dfinal)) << size.to_string();
    out.expect_untouched(size.to_string());
  }
}

TEST_EACH(SsdGrad, AccumulateAddsToWeightGradientsOnly, Device device) {
  const SsdCase c;
  const SsdGradInputs inputs = SsdGradInputs(c).to(device);
  const SsdGradients out(c, device);
  Stream& stream = default_stream(device);
  run_both(inputs, out, stream);
  const std::vector<double> dA_log = values(out.dA_log.view()), dD = values(out.dD.view());
  const std::vector<double> ddt_bias = values(out.ddt_bias.view()), dx = values(out.dx.view());
  run_both(inputs, out, stream, 0, [](SsdGrad op, Stream& on) {
    op.accumulate = true;
    run(op, on);
  });
  const auto twice = [](std::vector<double> once) {
    for (double& value : once) value *= 2;
    return once;
  };
  EXPECT_EQ(values(out.dA_log.view()), twice(dA_log));
  EXPECT_EQ(values(out.dD.view()), twice(dD));
  EXPECT_EQ(values(out.ddt_bias.view()), twice(ddt_bias));
  EXPECT_EQ(values(out.dx.view()), dx);
}

TEST_EACH(SsdGrad, LeavesOutWhatIsAbsent, Device device) {
  const SsdCase c;
  const SsdGradInputs host(c);
  const SsdGradients out(c, device);
  run_both(host.to(device), out, default_stream(device), 0, [](SsdGrad op, Stream& on) {
    op.dA_log = op.dD = op.ddt_bias = op.dinitial_state = {};
    run(op, on);
  });
  const SsdGradResult expected = reference(host, device);
  expect_within(out.dx.view(), expected.dx, "dx");
  expect_within(out.ddt.view(), expected.ddt, "ddt");
  for (const Guarded* output : {&out.dA_log, &out.dD, &out.ddt_bias, &out.dinitial}) {
    for (double value : values(output->view())) EXPECT_TRUE(std::isnan(value));  // as it was
  }
}

TEST(SsdGrad, ErrorsNameTheOperand) {
  const SsdCase c;
  const SsdGradInputs inputs(c);
  const SsdGradients out(c, Device::cpu());
  Stream& stream = default_stream();
  Ssd ssd = inputs.ssd.op();
  ssd.chunk_steps = 3;
  const Tensor states = Tensor::zeros({2, 3, 24, 16}, DType::f32);
  SsdGrad right = grad_op(ssd, out);
  right.chunk_states = states;
  right.dy = inputs.dy_view();
  const auto expect = [&](const std::string& text, auto change) {
    SsdGrad op = right;
    change(op);
    expect_error<ArgumentError>("ssd_grad: " + text, [&] { run(op, stream); });
  };
  expect("chunk_steps: expected 1 to 1073741824, got 0", [](auto& op) { op.chunk_steps = 0; });
  expect("chunk_states: expected [2, 2, 24, 16], got [2, 3, 24, 16]",
         [](auto& op) { op.chunk_steps = 5; });
  expect("chunk_states: expected a tensor, got none", [](auto& op) { op.chunk_states = {}; });
  expect("dy: expected a tensor, got none", [](auto& op) { op.dy = {}; });
  expect("groups: expected a divisor of 3 heads, got 2", [](auto& op) { op.groups = 2; });
  expect("ddt: expected [2, 9, 3], got [2, 9, 24]", [](auto& op) { op.ddt = op.dx; });
  expect("dD: expected none (there is no D), got a tensor", [](auto& op) { op.D = {}; });
  expect("ddt_bias: expected none (there is no dt_bias), got a tensor",
         [](auto& op) { op.dt_bias = {}; });
  expect("dfinal_state: expected [2, 24, 16], got [3]",
         [&](auto& op) { op.dfinal_state = inputs.ssd.A_log; });
  expect("dA_log: expected [3], got [2, 9, 24]", [](auto& op) { op.dA_log = op.dx; });
  for (const auto& [name, output] : out.all()) {
    for (double value : values(output->view())) ASSERT_TRUE(std::isnan(value)) << name;
  }
}

}  // namespace
}  // namespace mamba::testing
