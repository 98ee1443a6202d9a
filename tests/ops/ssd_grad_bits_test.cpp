// What SsdGrad promises about cuts, resets and bits, and its errors.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "each.hpp"
#include "ops/ssd_grad_inputs.hpp"

namespace mamba::testing {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

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

TEST_EACH(SsdGradBits, SameBitsTwice, Device device, DType dtype) {
  const SsdCase c = case_of_many_heads(dtype);
  const SsdGradInputs inputs = SsdGradInputs(c).to(device);
  const SsdGradients first(c, device), second(c, device);
  run_both(inputs, first, default_stream(device));
  run_both(inputs, second, default_stream(device));
  expect_same_bits(first, second, c.name());
}

TEST_EACH(SsdGradBits, ThreadsDoNotMatter, DType dtype) {
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

TEST_EACH(SsdGradBits, CutAnywhereEqualsTheWhole, Device device, DType dtype) {
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
TEST_EACH(SsdGradBits, NothingCrossesAReset, Device device, DType dtype) {
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

TEST_EACH(SsdGradBits, NaNBeforeAResetStaysThere, Device device, DType dtype) {
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

TEST_EACH(SsdGradBits, BatchOrderAndCompanyDoNotMatter, Device device) {
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

TEST_EACH(SsdGradBits, NothingToDo, Device device) {
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

TEST_EACH(SsdGradBits, AccumulateAddsToWeightGradientsOnly, Device device) {
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

TEST_EACH(SsdGradBits, LeavesOutWhatIsAbsent, Device device) {
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

TEST(SsdGradBits, ErrorsNameTheOperand) {
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
