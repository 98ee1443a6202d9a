// SelectiveScanGrad against the reference, the reference against finite differences, and what it
// promises about cuts, resets and bits.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/scan_grad_inputs.hpp"
#include "ops/targets.hpp"

namespace mamba::testing {
namespace {

void expect_matches_reference(const ScanCase& c, Device device, std::uint64_t seed = 1,
                              std::int64_t chunk_steps = 0) {
  const GradInputs host(c, seed);
  const Gradients out(c, device);
  run_both(host.to(device), out, default_stream(device), chunk_steps);
  expect_gradients(out, reference(host), c, c.name() + " on " + device.name());
}

// ---- the reference itself ----------------------------------------------------------------------

TEST_EACH(SelectiveScanGrad, ReferenceIsTheDerivativeOfTheForwardReference, ScanForm form) {
  for (int choice = 0; choice < 16; ++choice) {
    ScanCase c = case_of(form, DType::f32);
    c.batch = 2;
    c.time = 7;
    c.channels = 3;
    c.d_state = 4;
    c.D = choice & 1;
    c.z = choice & 2;
    c.dt_bias = choice & 4;
    c.reset = choice & 8;
    const GradInputs inputs(c, static_cast<std::uint64_t>(choice + 1));
    ScanReference scan(inputs.scan.op());
    const ScanLoss loss{values(inputs.dy_view()), values(inputs.dfinal)};
    const ScanGradResult result = ScanGradReference(scan, loss, 2).result();
    const auto check = [&](const char* name, std::vector<double>& operand,
                           const std::vector<Bounded>& gradient) {
      SCOPED_TRACE("choice " + std::to_string(choice));
      expect_derivative(name, operand, gradient, [&] { return loss(scan); });
    };
    check("x", scan.x, result.dx);
    check("dt", scan.dt, result.ddt);
    check("A_log", scan.A_log, result.dA_log);
    check("A", scan.given_A, result.dA);
    check("B", scan.B, result.dB);
    check("C", scan.C, result.dC);
    check("D", scan.D, result.dD);
    check("z", scan.z, result.dz);
    check("dt_bias", scan.dt_bias, result.ddt_bias);
    check("initial_state", scan.initial, result.dinitial);
  }
}

// ---- against the reference ---------------------------------------------------------------------

// What the forward run leaves for the gradient: h as it was handed to the first step of each chunk.
TEST_EACH(SelectiveScanGrad, ChunkStatesAreWhatWasHandedToTheirFirstStep, Device device) {
  for (std::int64_t time : {0, 1, 31, 32, 33, 64, 200, 1000}) {
    ScanCase c;
    c.time = time;
    c.channels = 37;
    c.reset = true;
    const ScanInputs host(c);
    const SequenceResult reference = scan_reference(host.op());
    const std::vector<double> initial = values(host.initial);
    const ScanInputs inputs = host.to(device);
    Stream& stream = default_stream(device);
    SelectiveScan scan = inputs.op();
    scan.chunk_steps = detail::scan_chunk_steps(scan, stream);
    const std::int64_t chunks = (time + scan.chunk_steps - 1) / scan.chunk_steps;
    const Guarded states({c.batch, chunks, c.channels, c.d_state}, DType::f32, device);
    Tensor y(inputs.y_shape(), c.dtype, device);
    scan.y = y;
    scan.chunk_states = states.view();
    run(scan, stream);
    std::vector<Bounded> expected;
    const std::int64_t row = c.channels * c.d_state;
    for (std::int64_t b = 0; b < c.batch; ++b) {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (std::int64_t i = 0; i < row; ++i) {
          const std::int64_t step = b * time + chunk * scan.chunk_steps - 1;
          expected.push_back(chunk == 0
                                 ? Bounded{initial[static_cast<std::size_t>(b * row + i)], 0}
                                 : reference.step_states[static_cast<std::size_t>(step * row + i)]);
        }
      }
    }
    expect_within(states.view(), expected, "time " + std::to_string(time));
    states.expect_untouched("time " + std::to_string(time));
  }
}

TEST_EACH(SelectiveScanGrad, MatchesReferenceForEveryStateSizeAndChannelCount, Device device,
          DType dtype, ScanForm form) {
  ScanCase c = case_of(form, dtype);
  for (std::int64_t d_state : {1, 2, 3, 4, 5, 15, 16, 17, 64, 100, 256}) {
    c.channels = 17;
    c.d_state = d_state;
    expect_matches_reference(c, device);
  }
  c.d_state = 16;
  for (std::int64_t channels : {1, 3, 15, 16, 31, 33, 127, 128, 129, 300}) {
    c.channels = channels;
    expect_matches_reference(c, device);
  }
  for (std::int64_t time : {1, 2, 7, 8, 31, 32, 33, 64, 65, 200}) {
    c.channels = 5;
    c.time = time;
    c.reset = time % 2 == 0;
    expect_matches_reference(c, device);
  }
  c.aligned = true;
  c.reset = false;
  for (std::int64_t channels : {8, 16, 40}) {
    for (std::int64_t time : {1, 15, 16, 33, 150}) {
      c.channels = channels;
      c.time = time;
      expect_matches_reference(c, device);
    }
  }
}

TEST_EACH(SelectiveScanGrad, MatchesReferenceForEveryChoiceOfOptionalOperands, Device device,
          DType dtype, ScanForm form) {
  for (int choice = 0; choice < 32; ++choice) {
    ScanCase c = case_of(form, dtype);
    c.time = 35;
    c.d_state = 7;
    c.D = choice & 1;
    c.z = choice & 2;
    c.dt_bias = choice & 4;
    c.initial = choice & 8;
    c.reset = choice & 16;
    expect_matches_reference(c, device, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(SelectiveScanGrad, MatchesReferenceOnEveryTarget, DType dtype, ScanForm form) {
  for_each_target([&](const char*) {
    ScanCase c = case_of(form, dtype);
    c.channels = 39;
    c.d_state = 18;
    c.time = 70;
    c.reset = true;
    expect_matches_reference(c, Device::cpu());
  });
}

TEST(SelectiveScanGrad, TakesAnyChunkLengthOnTheCpu) {
  for (std::int64_t chunk_steps : {1, 2, 5, 16, 64, 1000}) {
    ScanCase c;
    c.time = 70;
    c.channels = 20;
    c.reset = chunk_steps % 2 == 0;
    expect_matches_reference(c, Device::cpu(), 3, chunk_steps);
  }
}

TEST_EACH(SelectiveScanGrad, LongSequenceMatchesReference, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  c.batch = 1;
  c.time = 4097;
  c.channels = 20;
  expect_matches_reference(c, device);
}

// dt far below zero: the state and its gradient last, and the softplus is its own exponential.
TEST_EACH(SelectiveScanGrad, LongMemoryMatchesReference, Device device) {
  for (double dt : {-10.0, -20.0}) {
    ScanCase c;
    c.time = 300;
    c.channels = 3;
    GradInputs host(c);
    Random random(5);
    host.scan.dt_bias = random.uniform_tensor({c.channels}, dt - 1e-3, dt);
    const Gradients out(c, device);
    run_both(host.to(device), out, default_stream(device));
    expect_gradients(out, reference(host), c, "dt " + std::to_string(dt));
  }
}

TEST_EACH(SelectiveScanGrad, LargeInputsStayFinite, Device device) {
  ScanCase c;
  c.time = 40;
  GradInputs host(c);
  Random random(3);
  const auto extreme = [&] { return random.integer(0, 1) != 0 ? 100.0 : -100.0; };
  host.scan.xz = random.tensor(host.scan.xz.shape(), c.dtype, extreme);
  host.scan.dbc = random.tensor(host.scan.dbc.shape(), c.dtype, extreme);
  const Gradients out(c, device);
  run_both(host.to(device), out, default_stream(device));
  for (const auto& [name, output] : out.all()) {
    for (double value : values(output->view())) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

// ---- cuts, resets, bits ------------------------------------------------------------------------

void expect_same_bits(const Gradients& a, const Gradients& b, const std::string& what) {
  for (std::size_t i = 0; i < a.all().size(); ++i) {
    EXPECT_EQ(bits(a.all()[i].second->view()), bits(b.all()[i].second->view()))
        << what << ": " << a.all()[i].first;
  }
}

TEST_EACH(SelectiveScanGrad, SameBitsTwice, Device device, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.time = 100;
  c.channels = 300;
  c.reset = true;
  const GradInputs inputs = GradInputs(c).to(device);
  const Gradients first(c, device), second(c, device);
  run_both(inputs, first, default_stream(device));
  run_both(inputs, second, default_stream(device));
  expect_same_bits(first, second, c.name());
}

// One piece of the sequence, its gradient going on where the later piece's came out.
struct Piece {
  std::int64_t first, count;
};

// Forward over the pieces in order, backward in reverse with the state's gradient carried in place;
// weight gradients accumulate.
void run_in_pieces(const GradInputs& inputs, const std::vector<Piece>& pieces, const Gradients& out,
                   Stream& stream) {
  const ScanCase& c = inputs.shape();
  const SelectiveScan whole = inputs.scan.op();
  Tensor state = inputs.scan.initial.clone(stream);
  Tensor y(inputs.scan.y_shape(), c.dtype, stream.device());
  std::vector<Tensor> kept;
  std::vector<SelectiveScan> runs;
  for (const Piece& piece : pieces) {
    SelectiveScan scan = whole;
    scan.x = whole.x.steps(piece.first, piece.count);
    scan.dt = whole.dt.steps(piece.first, piece.count);
    scan.B = whole.B.steps(piece.first, piece.count);
    scan.C = whole.C.steps(piece.first, piece.count);
    if (whole.z) scan.z = whole.z.steps(piece.first, piece.count);
    if (whole.reset) scan.reset = whole.reset.columns(piece.first, piece.count);
    scan.initial_state = scan.final_state = state;
    scan.y = y.view().steps(piece.first, piece.count);
    scan.chunk_steps = detail::scan_chunk_steps(scan, stream);
    const std::int64_t chunks = (piece.count + scan.chunk_steps - 1) / scan.chunk_steps;
    kept.emplace_back(Shape{c.batch, chunks, c.channels, c.d_state}, DType::f32, stream.device());
    scan.chunk_states = kept.back();
    run(scan, stream);
    runs.push_back(scan);
  }
  copy(inputs.dfinal, out.dinitial.view(), stream);
  for (std::size_t i = pieces.size(); i-- > 0;) {
    SelectiveScanGrad op = grad_op(runs[i], out);
    const auto cut = [&](TensorView& view) {
      if (view) view = view.steps(pieces[i].first, pieces[i].count);
    };
    for (TensorView* view : {&op.dx, &op.ddt, &op.dz, &op.dB, &op.dC, &op.y}) cut(*view);
    op.dy = inputs.dy_view().steps(pieces[i].first, pieces[i].count);
    op.dfinal_state = op.dinitial_state;
    op.accumulate = i + 1 < pieces.size();
    run(op, stream);
  }
  stream.synchronize();
}

TEST_EACH(SelectiveScanGrad, CutAnywhereEqualsTheWhole, Device device, DType dtype, ScanForm form) {
  ScanCase c = case_of(form, dtype);
  c.time = 70;
  c.channels = 37;
  c.d_state = 6;
  c.reset = true;
  const GradInputs host(c, 7);
  const ScanGradResult expected = reference(host);
  const GradInputs inputs = host.to(device);
  for (std::int64_t cut : {0, 1, 31, 32, 33, 69, 70}) {
    const Gradients out(c, device);
    run_in_pieces(inputs, {{0, cut}, {cut, c.time - cut}}, out, default_stream(device));
    expect_gradients(out, expected, c, "cut at " + std::to_string(cut));
  }
  std::vector<Piece> steps;
  for (std::int64_t t = 0; t < c.time; ++t) steps.push_back({t, 1});
  const Gradients out(c, device);
  run_in_pieces(inputs, steps, out, default_stream(device));
  expect_gradients(out, expected, c, "step by step");
}

// What lies before a reset gets nothing from behind it, whatever is there: NaN behind a reset must
// not reach it, and a NaN state or gradient before it must not either.
TEST_EACH(SelectiveScanGrad, NothingCrossesAReset, Device device) {
  ScanCase c;
  c.time = 66;
  c.batch = 1;
  GradInputs host(c);
  std::vector<std::int32_t> flags(66, 0);
  flags[40] = 1;
  host.scan.reset = Tensor::from(flags, {1, 66});
  const ScanGradResult expected = reference(host);
  GradInputs poisoned(c);
  poisoned.scan.reset = host.scan.reset.clone();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::int64_t pitch = c.channels + 1;
  for (std::int64_t i = 40 * pitch; i < 66 * pitch; ++i) poisoned.dy.data<float>()[i] = nan;
  for (std::int64_t i = 0; i < poisoned.dfinal.count(); ++i) poisoned.dfinal.data<float>()[i] = nan;
  const Gradients out(c, device);
  run_both(poisoned.to(device), out, default_stream(device));
  const auto first = [](std::vector<Bounded> all, std::int64_t count) {
    all.resize(static_cast<std::size_t>(count));
    return all;
  };
  const std::int64_t before = 40 * c.channels;
  expect_within(out.dx.view().steps(0, 40), first(expected.dx, before), "dx before the reset");
  expect_within(out.ddt.view().steps(0, 40), first(expected.ddt, before), "ddt before it");
  expect_within(out.dB.view().steps(0, 40), first(expected.dB, 40 * c.d_state), "dB before it");
  expect_within(out.dinitial.view(), expected.dinitial, "dinitial");
}

TEST_EACH(SelectiveScanGrad, NaNBeforeAResetStaysThere, Device device) {
  ScanCase c;
  c.time = 40;
  c.batch = 1;
  GradInputs host(c);
  std::vector<std::int32_t> flags(40, 0);
  flags[0] = 1;
  host.scan.reset = Tensor::from(flags, {1, 40});
  const ScanGradResult expected = reference(host);
  for (std::int64_t i = 0; i < host.scan.initial.count(); ++i) {
    host.scan.initial.data<float>()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  const Gradients out(c, device);
  run_both(host.to(device), out, default_stream(device));
  expect_gradients(out, expected, c, "NaN in the initial state");
  for (double value : values(out.dinitial.view())) EXPECT_EQ(value, 0);
}

TEST_EACH(SelectiveScanGrad, NothingToDo, Device device) {
  for (const Shape& size : {Shape{2, 0, 5}, Shape{0, 3, 5}, Shape{2, 3, 0}}) {
    ScanCase c;
    c.batch = size[0];
    c.time = size[1];
    c.channels = size[2];
    const GradInputs host(c);
    const Gradients out(c, device);
    run_both(host.to(device), out, default_stream(device));
    for (const Guarded* output : {&out.dA, &out.dD, &out.ddt_bias}) {
      for (double value : values(output->view())) EXPECT_EQ(value, 0) << size.to_string();
    }
    EXPECT_EQ(values(out.dinitial.view()), values(host.dfinal)) << size.to_string();
    for (double value : values(out.dB.view())) EXPECT_EQ(value, 0) << size.to_string();
    out.expect_untouched(size.to_string());
  }
}

TEST_EACH(SelectiveScanGrad, AccumulateAddsToWeightGradientsOnly, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  const GradInputs host(c);
  const GradInputs inputs = host.to(device);
  const Gradients out(c, device);
  run_in_pieces(inputs, {{0, c.time}}, out, default_stream(device));
  const std::vector<double> once = values(out.dA.view()), dx = values(out.dx.view());
  Stream& stream = default_stream(device);
  SelectiveScan scan = inputs.scan.op();
  scan.chunk_steps = detail::scan_chunk_steps(scan, stream);
  Tensor states({c.batch, 1, c.channels, c.d_state}, DType::f32, device);
  Tensor y(inputs.scan.y_shape(), c.dtype, device);
  scan.chunk_states = states;
  scan.y = y;
  run(scan, stream);
  SelectiveScanGrad op = grad_op(scan, out);
  op.dy = inputs.dy_view();
  op.dfinal_state = inputs.dfinal;
  op.accumulate = true;
  run(op, stream);
  const std::vector<double> twice = values(out.dA.view());
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_EQ(twice[i], 2 * once[i]);
  EXPECT_EQ(values(out.dx.view()), dx);
}

TEST(SelectiveScanGrad, ErrorsNameTheOperand) {
  const ScanCase c;
  const GradInputs inputs(c);
  const Gradients out(c, Device::cpu());
  Stream& stream = default_stream();
  SelectiveScan scan = inputs.scan.op();
  Tensor states({2, 2, 17, 16}, DType::f32), y(inputs.scan.y_shape(), DType::f32);
  scan.chunk_states = states;
  scan.chunk_steps = 5;
  scan.y = y;
  run(scan, stream);
  const auto expect = [&](const std::string& text, auto change) {
    SelectiveScanGrad op = grad_op(scan, out);
    op.dy = inputs.dy_view();
    op.dfinal_state = inputs.dfinal;
    change(op);
    expect_error<ArgumentError>("selective_scan_grad: " + text, [&] { run(op, stream); });
  };
  expect("chunk_steps: expected 1 to 1073741824, got 0", [](auto& op) { op.chunk_steps = 0; });
  expect("chunk_states: expected [2, 3, 17, 16], got [2, 2, 17, 16]",
         [](auto& op) { op.chunk_steps = 4; });
  expect("chunk_states: expected a tensor, got none", [](auto& op) { op.chunk_states = {}; });
  expect("dy: expected a tensor, got none", [](auto& op) { op.dy = {}; });
  expect("dz: expected none (there is no z), got a tensor", [](auto& op) { op.z = {}; });
  expect("dz: expected a tensor, got none", [](auto& op) { op.dz = {}; });
  expect("dD: expected none (there is no D), got a tensor", [](auto& op) { op.D = {}; });
  expect("ddt_bias: expected none (there is no dt_bias), got a tensor",
         [](auto& op) { op.dt_bias = {}; });
  expect("dfinal_state: expected [2, 17, 16], got [17, 16]",
         [&](auto& op) { op.dfinal_state = inputs.scan.A_log; });
  expect("dA_log: expected [17, 16], got [17]", [](auto& op) { op.dA_log = op.dD; });
  for (const auto& [name, output] : out.all()) {
    for (double value : values(output->view())) ASSERT_TRUE(std::isnan(value)) << name;
  }
  expect_error<ArgumentError>(
      "selective_scan: chunk_states: expected [2, 3, 17, 16], got [2, 2, 17, 16]", [&] {
        SelectiveScan wrong = scan;
        wrong.chunk_steps = 4;
        run(wrong, stream);
      });
}

}  // namespace
}  // namespace mamba::testing
