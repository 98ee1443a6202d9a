// CausalConv against the fp64 reference, and the promises it makes to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "ops/conv_inputs.hpp"
#include "ops/sequence_reference.hpp"
#include "ops/targets.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

struct ConvOutputs {
  Tensor y, final_state;
};

ConvOutputs run_conv(const ConvInputs& inputs, CausalConv conv, Stream& stream) {
  ConvOutputs out{Tensor(inputs.y_shape(), inputs.shape.dtype, stream.device()),
                  Tensor(inputs.state_shape(), inputs.shape.dtype, stream.device())};
  conv.y = out.y;
  conv.final_state = out.final_state;
  run(conv, stream);
  stream.synchronize();
  return out;
}

ConvOutputs run_conv(const ConvInputs& inputs, Stream& stream) {
  return run_conv(inputs, inputs.op(), stream);
}

void expect_same(const ConvOutputs& a, const ConvOutputs& b, const std::string& what) {
  EXPECT_EQ(bits(a.y), bits(b.y)) << what << ": y";
  EXPECT_EQ(bits(a.final_state), bits(b.final_state)) << what << ": final state";
}

// States are copies of inputs: no rounding at all, not even the storage's.
void expect_exact(ConstTensorView result, const std::vector<Bounded>& expected,
                  const std::string& what) {
  const std::vector<double> got = values(result);
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i], expected[i].value) << what << ": element " << i;
  }
}

// Everything against the reference, through guarded and strided outputs.
void expect_matches_reference(const ConvCase& c, Device device, std::uint64_t seed = 1) {
  const ConvInputs host(c, seed);
  const SequenceResult expected = conv_reference(host.op());
  const ConvInputs inputs = host.to(device);
  const Guarded y(inputs.y_shape(), c.dtype, device, 5);
  const Guarded state(inputs.state_shape(), c.dtype, device);
  const Guarded steps(inputs.step_shape(), c.dtype, device);
  for (const bool with_steps : {false, true}) {
    const std::string what = c.name() + (with_steps ? " steps" : "") + " on " + device.name();
    CausalConv conv = inputs.op();
    conv.y = y.view();
    conv.final_state = state.view();
    if (with_steps) conv.step_states = steps.view();
    run(conv, default_stream(device));
    expect_within(y.view(), expected.y, what + ": y");
    expect_exact(state.view(), expected.final_state, what + ": final state");
    if (with_steps) expect_exact(steps.view(), expected.step_states, what + ": step states");
    y.expect_untouched(what);
    state.expect_untouched(what);
    steps.expect_untouched(what);
  }
}

TEST_EACH(CausalConv, MatchesReferenceForEveryWidthChannelCountAndTime, Device device,
          DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  for (std::int64_t width : {1, 2, 3, 4, 5, 8, 40}) {
    c.width = width;
    for (std::int64_t time : {1, 2, 3, 4, 5, 31, 32, 33, 64, 70}) {
      c.time = time;
      expect_matches_reference(c, device);
    }
  }
  c.width = 4;
  for (std::int64_t channels : {1, 3, 16, 31, 32, 33, 40, 64, 100, 512, 515, 1030}) {
    c.channels = channels;
    expect_matches_reference(c, device);
  }
}

TEST_EACH(CausalConv, MatchesReferenceForEveryChoiceOfOptionalOperands, Device device,
          DType dtype) {
  for (int choice = 0; choice < 32; ++choice) {
    ConvCase c;
    c.dtype = dtype;
    c.bias = choice & 1;
    c.silu = choice & 2;
    c.initial = choice & 4;
    c.reset = choice & 8;
    c.width = choice & 16 ? 6 : 4;
    expect_matches_reference(c, device, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(CausalConv, MatchesReferenceOnEveryTarget, DType dtype) {
  for_each_target([&](const char*) {
    for (std::int64_t width : {3, 4}) {
      ConvCase c;
      c.dtype = dtype;
      c.channels = 39;
      c.width = width;
      c.time = 35;
      c.reset = true;
      expect_matches_reference(c, Device::cpu());
    }
  });
}

TEST_EACH(CausalConv, LongSequenceMatchesReference, Device device) {
  expect_matches_reference({1, 4097, 20, 4}, device);
}

TEST_EACH(CausalConv, LargeInputsStayFinite, Device device, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  c.scale = 100;
  const ConvInputs inputs = ConvInputs(c).to(device);
  for (double value : values(run_conv(inputs, default_stream(device)).y)) {
    ASSERT_TRUE(std::isfinite(value));
  }
  expect_matches_reference(c, device);
}

// ---- the same bits ----------------------------------------------------------------------------

// The sequence in pieces, the state handed on in place.
ConvOutputs run_in_pieces(const ConvInputs& inputs, const std::vector<std::int64_t>& cuts,
                          Stream& stream) {
  const CausalConv whole = inputs.op();
  ConvOutputs out{Tensor(inputs.y_shape(), inputs.shape.dtype, stream.device()),
                  inputs.initial.clone(stream)};
  std::int64_t first = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::int64_t last = i < cuts.size() ? cuts[i] : inputs.shape.time;
    CausalConv piece = whole;
    piece.x = whole.x.steps(first, last - first);
    if (whole.reset) piece.reset = whole.reset.columns(first, last - first);
    piece.initial_state = out.final_state;
    piece.final_state = out.final_state;
    piece.y = out.y.view().steps(first, last - first);
    run(piece, stream);
    first = last;
  }
  stream.synchronize();
  return out;
}

TEST_EACH(CausalConv, CutAnywhereGivesTheSameBits, Device device, DType dtype) {
  for (std::int64_t width : {1, 2, 4, 7}) {
    for (bool reset : {false, true}) {
      ConvCase c;
      c.dtype = dtype;
      c.time = 70;
      c.channels = 37;
      c.width = width;
      c.reset = reset;
      const ConvInputs inputs = ConvInputs(c).to(device);
      Stream& stream = default_stream(device);
      const ConvOutputs whole = run_conv(inputs, stream);
      const std::vector<std::vector<std::int64_t>> all_cuts = {
          {0},  {1},  {width - 1},      {width},           {width + 1},
          {32}, {70}, {5, 5, 6, 8, 69}, {1, 2, 3, 4, 5, 6}};
      for (const auto& cuts : all_cuts) {
        expect_same(run_in_pieces(inputs, cuts, stream), whole,
                    c.name() + " cut at " + std::to_string(cuts[0]));
      }
      std::vector<std::int64_t> every;
      for (std::int64_t t = 1; t < c.time; ++t) every.push_back(t);
      expect_same(run_in_pieces(inputs, every, stream), whole, c.name() + " step by step");
    }
  }
}

TEST_EACH(CausalConv, StepStatesAreTheFinalStatesOfPrefixes, Device device) {
  for (bool reset : {false, true}) {
    ConvCase c;
    c.time = 12;
    c.width = 5;
    c.reset = reset;
    const ConvInputs inputs = ConvInputs(c).to(device);
    Stream& stream = default_stream(device);
    // Between steps of a larger tensor: the pitches are the view's.
    Tensor larger({c.batch, c.time + 3, c.channels, c.width - 1}, c.dtype, device);
    CausalConv with_steps = inputs.op();
    with_steps.step_states = larger.view().steps(2, c.time);
    expect_same(run_conv(inputs, with_steps, stream), run_conv(inputs, stream), "step states");
    for (std::int64_t t = 0; t < c.time; ++t) {
      CausalConv prefix = inputs.op();
      prefix.x = prefix.x.steps(0, t + 1);
      if (reset) prefix.reset = prefix.reset.columns(0, t + 1);
      Tensor y({c.batch, t + 1, c.channels}, c.dtype, device);
      Tensor state(inputs.state_shape(), c.dtype, device);
      prefix.y = y;
      prefix.final_state = state;
      run(prefix, stream);
      EXPECT_EQ(bits(larger.view().steps(2 + t, 1)), bits(state)) << "step " << t;
    }
  }
}

TEST_EACH(CausalConv, ResetsAreSeparateSequencesFromFreshStates, Device device, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  c.batch = 1;
  c.time = 40;
  ConvInputs host(c);
  std::vector<std::int32_t> flags(40);
  const std::vector<std::int64_t> starts = {0, 1, 4, 5, 38, 40};
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    flags[static_cast<std::size_t>(starts[i])] = 1;
  }
  host.reset = Tensor::from(flags, {1, 40});
  // What a reset must leave behind by a select: 0 times NaN is NaN.
  host.initial = Random(2).tensor(host.state_shape(), dtype, [] { return std::nan(""); });
  const ConvInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  const ConvOutputs together = run_conv(inputs, stream);
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const std::int64_t first = starts[i], count = starts[i + 1] - first;
    CausalConv alone = inputs.op();
    alone.x = alone.x.steps(first, count);
    alone.reset = {};
    alone.initial_state = {};
    Tensor y({1, count, c.channels}, dtype, device);
    Tensor state(inputs.state_shape(), dtype, device);
    alone.y = y;
    alone.final_state = state;
    run(alone, stream);
    EXPECT_EQ(bits(together.y.view().steps(first, count)), bits(y)) << "sequence " << i;
    if (starts[i + 1] == c.time) {  // two steps since the reset: one column of zeros is left
      EXPECT_EQ(bits(together.final_state), bits(state));
      EXPECT_EQ(values(state)[0], 0);
    }
  }
  for (double value : values(together.y)) ASSERT_TRUE(std::isfinite(value));
}

// The same for a NaN among the inputs.
TEST_EACH(CausalConv, NaNBeforeAResetDoesNotLeak, Device device) {
  ConvCase c;
  c.batch = 1;
  c.time = 6;
  ConvInputs host(c);
  for (std::int64_t i = 0; i < host.xz.dim(2); ++i) {
    host.xz.data<float>()[3 * host.xz.dim(2) + i] = std::numeric_limits<float>::quiet_NaN();
  }
  host.reset = Tensor::from<std::int32_t>({0, 0, 0, 0, 1, 0}, {1, 6});
  const ConvOutputs got = run_conv(host.to(device), default_stream(device));
  const std::vector<double> y = values(got.y);
  for (std::size_t i = 0; i < y.size(); ++i) ASSERT_EQ(std::isnan(y[i]), i / 17 == 3) << i;
  for (double value : values(got.final_state)) ASSERT_TRUE(std::isfinite(value));
}

TEST_EACH(CausalConv, IsCausal, Device device) {
  ConvCase c;
  c.time = 40;
  const ConvInputs inputs = ConvInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ConvOutputs before = run_conv(inputs, stream);
  ConvInputs changed = inputs.to(device);
  const ConvInputs other = ConvInputs(c, 99).to(device);
  copy(other.xz.view().steps(20, 20), changed.xz.view().steps(20, 20), stream);
  const ConvOutputs after = run_conv(changed, stream);
  EXPECT_EQ(bits(before.y.view().steps(0, 20)), bits(after.y.view().steps(0, 20)));
  EXPECT_NE(bits(before.y.view().steps(20, 1)), bits(after.y.view().steps(20, 1)));
}

TEST_EACH(CausalConv, BatchOrderAndCompanyDoNotMatter, Device device, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  c.batch = 5;
  c.time = 33;
  const ConvInputs inputs = ConvInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ConvOutputs together = run_conv(inputs, stream);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    CausalConv alone = inputs.op();
    alone.x = alone.x.rows(b, 1);
    alone.initial_state = alone.initial_state.rows(b, 1);
    Tensor y({1, c.time, c.channels}, dtype, device);
    Tensor state({1, c.channels, c.width - 1}, dtype, device);
    alone.y = y;
    alone.final_state = state;
    run(alone, stream);
    EXPECT_EQ(bits(together.y.view().rows(b, 1)), bits(y)) << "row " << b;
    EXPECT_EQ(bits(together.final_state.view().rows(b, 1)), bits(state)) << "row " << b;
  }
}

TEST_EACH(CausalConv, ThreadsDoNotMatter, DType dtype) {
  ConvCase c;
  c.dtype = dtype;
  c.batch = 3;
  c.time = 2000;
  c.channels = 131;
  c.reset = true;
  const ConvInputs inputs(c);
  Stream one(Device::cpu(), 1);
  const ConvOutputs alone = run_conv(inputs, one);
  for (int threads : {2, 3, 7}) {
    Stream several(Device::cpu(), threads);
    expect_same(run_conv(inputs, several), alone, std::to_string(threads) + " threads");
  }
}

// ---- rows and empty sizes ---------------------------------------------------------------------

TEST_EACH(CausalConv, RowMapReadsAndWritesRowsOfALargerState, Device device) {
  for (std::int64_t time : {2, 7}) {  // shorter than the state, and longer
    ConvCase c;
    c.batch = 5;
    c.time = time;
    ConvInputs host(c);
    host.initial = Random(9).normal_tensor({6, c.channels, c.width - 1});
    const std::vector<std::int32_t> read = {4, -1, 2, 2, -1}, write = {4, 0, -1, 5, -3};
    const Tensor read_rows = Tensor::from(read, {5}).to(device);
    const Tensor write_rows = Tensor::from(write, {5}).to(device);
    const ConvInputs inputs = host.to(device);
    Stream& stream = default_stream(device);
    const Tensor before = inputs.initial.clone();
    Tensor pool = inputs.initial.clone();
    Tensor y(inputs.y_shape(), c.dtype, device);
    Tensor steps(inputs.step_shape(), c.dtype, device);
    CausalConv conv = inputs.op();
    conv.initial_state = pool;
    conv.final_state = pool;
    conv.rows = {read_rows, write_rows};
    conv.y = y;
    conv.step_states = steps;
    run(conv, stream);
    for (std::int64_t b = 0; b < 4; ++b) {
      CausalConv alone = inputs.op();
      alone.x = alone.x.rows(b, 1);
      const std::int32_t from = read[static_cast<std::size_t>(b)];
      const std::int32_t to = write[static_cast<std::size_t>(b)];
      alone.initial_state = from < 0 ? ConstTensorView() : before.view().rows(from, 1);
      Tensor one({1, c.time, c.channels}, c.dtype, device);
      Tensor state({1, c.channels, c.width - 1}, c.dtype, device);
      alone.y = one;
      alone.final_state = state;
      run(alone, stream);
      EXPECT_EQ(bits(y.view().rows(b, 1)), bits(one)) << "batch row " << b;
      if (to >= 0) {
        EXPECT_EQ(bits(pool.view().rows(to, 1)), bits(state)) << "batch row " << b;
      }
    }
    for (std::int64_t row : {1, 2, 3}) {  // written by nobody
      EXPECT_EQ(bits(pool.view().rows(row, 1)), bits(before.view().rows(row, 1))) << row;
    }
    for (double value : values(y.view().rows(4, 1))) EXPECT_EQ(value, 0);
    for (double value : values(steps.view().rows(4, 1))) EXPECT_EQ(value, 0);
  }
}

TEST_EACH(CausalConv, TimeZeroKeepsTheState, Device device) {
  ConvCase c;
  c.time = 0;
  const ConvInputs inputs = ConvInputs(c).to(device);
  Stream& stream = default_stream(device);
  EXPECT_EQ(bits(run_conv(inputs, stream).final_state), bits(inputs.initial));
  CausalConv fresh = inputs.op();
  fresh.initial_state = {};
  for (double value : values(run_conv(inputs, fresh, stream).final_state)) EXPECT_EQ(value, 0);

  ConvInputs pool = inputs.to(device);
  pool.initial = Random(4).normal_tensor({4, c.channels, c.width - 1}).to(device);
  const Tensor before = pool.initial.clone();
  const Tensor read = Tensor::from<std::int32_t>({1, 0}, {2}).to(device);
  const Tensor write = Tensor::from<std::int32_t>({2, 3}, {2}).to(device);
  CausalConv moved = pool.op();
  Tensor y(inputs.y_shape(), c.dtype, device);
  moved.y = y;
  moved.final_state = pool.initial;
  moved.rows = {read, write};
  run(moved, stream);
  EXPECT_EQ(bits(pool.initial.view().rows(2, 1)), bits(before.view().rows(1, 1)));
  EXPECT_EQ(bits(pool.initial.view().rows(3, 1)), bits(before.view().rows(0, 1)));
  EXPECT_EQ(bits(pool.initial.view().rows(0, 2)), bits(before.view().rows(0, 2)));
}

TEST_EACH(CausalConv, EmptyBatchAndNoChannelsAreLegal, Device device) {
  for (const ConvCase& c : {ConvCase{0, 5, 17, 4}, ConvCase{2, 5, 0, 4}, ConvCase{0, 0, 3, 1}}) {
    run_conv(ConvInputs(c).to(device), default_stream(device));
  }
}

// ---- errors -----------------------------------------------------------------------------------

TEST(CausalConv, ErrorsNameTheOperand) {
  const ConvInputs inputs{ConvCase{}};
  Stream& stream = default_stream();
  Tensor y(inputs.y_shape(), DType::f32), state(inputs.state_shape(), DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    CausalConv conv = inputs.op();
    conv.y = y;
    conv.final_state = state;
    change(conv);
    expect_error<ArgumentError>("causal_conv: " + text, [&] { run(conv, stream); });
  };
  const Tensor none = Tensor::zeros({17, 0}, DType::f32);
  const Tensor integers = Tensor::zeros({2, 9, 17}, DType::i32);
  const Tensor half = Tensor::zeros({17, 4}, DType::bf16);
  Tensor half_state = Tensor::zeros({2, 17, 3}, DType::bf16);
  expect("x: expected a tensor, got none", [](auto& op) { op.x = {}; });
  expect("x: expected f32 or bf16 or f16, got i32", [&](auto& op) { op.x = integers; });
  expect("x: expected cpu, got cuda:0", [&](auto& op) {
    op.x = ConstTensorView(op.x.data(), {2, 9, 17}, DType::f32, Device::cuda(0));
  });
  expect("width: expected 1 to 1048576, got 0", [&](auto& op) { op.weight = none; });
  expect("weight: expected f32, got bf16", [&](auto& op) { op.weight = half; });
  expect("weight: expected 2 dimensions, got [2, 9, 17]", [](auto& op) { op.weight = op.x; });
  expect("bias: expected [17], got [17, 4]", [&](auto& op) { op.bias = op.weight; });
  expect("y: expected [2, 9, 17], got [2, 8, 17]", [](auto& op) { op.y = op.y.steps(0, 8); });
  expect("final_state: expected f32, got bf16", [&](auto& op) { op.final_state = half_state; });
  expect("initial_state: expected [2, 17, 3], got [2, 9, 17]",
         [](auto& op) { op.initial_state = op.x; });
  expect("reset: expected [2, 9], got [2, 9, 17]", [&](auto& op) { op.reset = integers; });
  expect("step_states: expected [2, 9, 17, 3], got [2, 9, 17]",
         [&](auto& op) { op.step_states = op.y; });
  const Tensor rows = Tensor::zeros({2}, DType::i32);
  expect("rows.write: expected a tensor, got none", [&](auto& op) { op.rows.read = rows; });
  expect("initial_state: expected a state for the rows to be in, got none", [&](auto& op) {
    op.initial_state = {};
    op.final_state = {};
    op.rows = {rows, rows};
  });
}

}  // namespace
}  // namespace mamba::testing
