// SelectiveScan against the fp64 reference, and the promises it makes to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "each.hpp"
#include "ops/scan_inputs.hpp"
#include "ops/sequence_reference.hpp"
#include "ops/targets.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

// The outputs of one call, fresh.
struct ScanOutputs {
  Tensor y, final_state;
};

ScanOutputs run_scan(const ScanInputs& inputs, SelectiveScan scan, Stream& stream) {
  ScanOutputs out{Tensor(inputs.y_shape(), inputs.shape.dtype, stream.device()),
                  Tensor(inputs.state_shape(), DType::f32, stream.device())};
  scan.y = out.y;
  scan.final_state = out.final_state;
  run(scan, stream);
  stream.synchronize();
  return out;
}

ScanOutputs run_scan(const ScanInputs& inputs, Stream& stream) {
  return run_scan(inputs, inputs.op(), stream);
}

void expect_same(const ScanOutputs& a, const ScanOutputs& b, const std::string& what) {
  EXPECT_EQ(bits(a.y), bits(b.y)) << what << ": y";
  EXPECT_EQ(bits(a.final_state), bits(b.final_state)) << what << ": final state";
}

// Everything against the reference, through guarded and strided outputs.
void expect_matches_reference(const ScanCase& c, Device device, std::uint64_t seed = 1) {
  const ScanInputs host(c, seed);
  const SequenceResult expected = scan_reference(host.op());
  const ScanInputs inputs = host.to(device);
  const Guarded y(inputs.y_shape(), c.dtype, device, 5);
  const Guarded state(inputs.state_shape(), DType::f32, device);
  const Guarded steps(inputs.step_shape(), DType::f32, device);
  for (const bool with_steps : {false, true}) {
    const std::string what = c.name() + (with_steps ? " steps" : "") + " on " + device.name();
    SelectiveScan scan = inputs.op();
    scan.y = y.view();
    scan.final_state = state.view();
    if (with_steps) scan.step_states = steps.view();
    run(scan, default_stream(device));
    expect_within(y.view(), expected.y, what + ": y");
    expect_within(state.view(), expected.final_state, what + ": final state");
    if (with_steps) expect_within(steps.view(), expected.step_states, what + ": step states");
    y.expect_untouched(what);
    state.expect_untouched(what);
    steps.expect_untouched(what);
  }
}

TEST_EACH(SelectiveScan, MatchesReferenceForEveryStateSizeAndChannelCount, Device device,
          DType dtype, ScanForm form) {
  ScanCase c = case_of(form, dtype);
  for (std::int64_t d_state : {1, 2, 3, 4, 5, 15, 16, 17, 64, 100, 256}) {
    c.channels = 17;
    c.d_state = d_state;
    expect_matches_reference(c, device);
  }
  c.channels = 135;  // more than fit a panel at this d_state
  expect_matches_reference(c, device);
  c.d_state = 16;
  for (std::int64_t channels : {1, 3, 15, 16, 31, 32, 33, 40, 100, 127, 128, 129, 300}) {
    c.channels = channels;
    expect_matches_reference(c, device);
  }
  for (std::int64_t time : {1, 2, 7, 8, 9, 16, 33, 64, 200}) {
    c.channels = 5;
    c.time = time;
    expect_matches_reference(c, device);
  }
}

TEST_EACH(SelectiveScan, MatchesReferenceForEveryChoiceOfOptionalOperands, Device device,
          DType dtype, ScanForm form) {
  for (int choice = 0; choice < 32; ++choice) {
    ScanCase c = case_of(form, dtype);
    c.d_state = 7;
    c.D = choice & 1;
    c.z = choice & 2;
    c.dt_bias = choice & 4;
    c.initial = choice & 8;
    c.reset = choice & 16;
    expect_matches_reference(c, device, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(SelectiveScan, MatchesReferenceOnEveryTarget, DType dtype, ScanForm form) {
  for_each_target([&](const char*) {
    ScanCase c = case_of(form, dtype);
    c.channels = 39;
    c.d_state = 18;
    c.time = 35;
    c.reset = true;
    expect_matches_reference(c, Device::cpu());
  });
}

// Factors whose products and sums are exact in every storage type, so that dt is known to the bit.
TEST_EACH(SelectiveScan, ProjectsDt, Device device, DType dtype, ScanForm form) {
  for (const std::int64_t dt_rank : {1, 5, 14, 48}) {
    if (!form.softplus && dt_rank > 5) continue;  // states would grow beyond f16
    for (const auto& [batch, time, d_state] :
         {std::array<std::int64_t, 3>{1, 1, 16}, {3, 1, 5}, {9, 1, 16}, {2, 7, 3}, {2, 1, 200}}) {
      ScanCase c = case_of(form, dtype);
      c.batch = batch;
      c.time = time;
      c.d_state = d_state;
      ScanInputs host(c);
      Random random(7);
      const auto quarter = [&](int most) { return std::round(random.uniform(-most, most)) / 4; };
      const Tensor low =
          random.tensor({batch, time, dt_rank + 3}, dtype, [&] { return quarter(4); });
      const Tensor weight = random.tensor({c.channels, dt_rank}, dtype, [&] { return quarter(1); });
      const std::vector<double> factors = values(low), weights = values(weight);
      std::vector<float> dt;
      for (std::int64_t r = 0; r < batch * time; ++r) {
        for (std::int64_t channel = 0; channel < c.channels; ++channel) {
          double sum = 0;
          for (std::int64_t k = 0; k < dt_rank; ++k) {
            sum += factors[static_cast<std::size_t>(r * (dt_rank + 3) + k)] *
                   weights[static_cast<std::size_t>(channel * dt_rank + k)];
          }
          dt.push_back(static_cast<float>(sum));
        }
      }
      const Tensor exact = Tensor::from(dt, {batch, time, c.channels}).to(Device::cpu(), dtype);
      SelectiveScan known = host.op();
      known.dt = exact;
      const SequenceResult expected = scan_reference(known);

      const ScanInputs inputs = host.to(device);
      const Tensor there = low.to(device), weight_there = weight.to(device);
      const Guarded y(inputs.y_shape(), dtype, device);
      const Guarded last(inputs.state_shape(), DType::f32, device);
      SelectiveScan op = inputs.op();
      op.dt = there.view().columns(0, dt_rank);
      op.dt_weight = weight_there;
      op.y = y.view();
      op.final_state = last.view();
      run(op, default_stream(device));
      expect_within(y.view(), expected.y, c.name() + " y");
      expect_within(last.view(), expected.final_state, c.name() + " final state");
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(SelectiveScan, LongSequenceMatchesReference, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  c.batch = 1;
  c.time = 4097;
  c.channels = 20;
  expect_matches_reference(c, device);
}

// dt far below zero and A near zero: the state is kept over thousands of steps. log(1 + e^dt) would
// be off by 4e-4 at dt = -10, and by everything at -20.
TEST_EACH(SelectiveScan, LongMemoryMatchesReference, Device device) {
  for (double dt : {-10.0, -20.0, -80.0}) {
    ScanCase c;
    c.time = 1000;
    c.channels = 3;
    ScanInputs host(c);
    Random random(5);
    host.dt_bias = random.uniform_tensor({c.channels}, dt - 1e-3, dt);
    host.dbc = random.normal_tensor(host.dbc.shape(), DType::f32, 0.1);
    host.initial = Tensor::zeros(host.state_shape(), DType::f32);
    const SequenceResult expected = scan_reference(host.op());
    const ScanInputs inputs = host.to(device);
    const ScanOutputs got = run_scan(inputs, default_stream(device));
    expect_within(got.final_state, expected.final_state, "dt " + std::to_string(dt));
    // The bound is relative: this far down an absolute one would pass anything.
    for (const Bounded& state : expected.final_state) {
      if (std::abs(state.value) > 1e-30) {
        EXPECT_GT(std::abs(state.value), 2 * state.bound);
      }
    }
  }
}

TEST_EACH(SelectiveScan, LargeInputsStayFinite, Device device, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.time = 50;
  ScanInputs host(c);
  Random random(3);
  const double limit = dtype == DType::f16 ? 4 : 100;  // f16 y overflows above 65504
  const auto extreme = [&] { return random.integer(0, 1) != 0 ? limit : -limit; };
  host.xz = random.tensor(host.xz.shape(), dtype, extreme);
  host.dbc = random.tensor(host.dbc.shape(), dtype, extreme);
  const SequenceResult expected = scan_reference(host.op());
  const ScanInputs inputs = host.to(device);
  const ScanOutputs got = run_scan(inputs, default_stream(device));
  for (double value : values(got.y)) ASSERT_TRUE(std::isfinite(value));
  for (double value : values(got.final_state)) ASSERT_TRUE(std::isfinite(value));
  expect_within(got.y, expected.y, c.name());
}

// The bound means something: a state kept in bf16 is outside it.
TEST(SelectiveScan, BoundRejectsA16BitState) {
  const ScanInputs host{ScanCase{}};
  const SequenceResult exact = scan_reference(host.op());
  const auto in_bf16 = [](double h) { return double{float(bf16(static_cast<float>(h)))}; };
  const auto in_f16 = [](double h) { return double{float(f16(static_cast<float>(h)))}; };
  for (const auto keep : {+in_bf16, +in_f16}) {
    const SequenceResult rounded = scan_reference(host.op(), keep);
    std::size_t outside = 0;
    for (std::size_t i = 0; i < exact.y.size(); ++i) {
      const double allowed = exact.y[i].bound + f32_roundoff * std::abs(exact.y[i].value);
      outside += std::abs(rounded.y[i].value - exact.y[i].value) > allowed ? 1 : 0;
    }
    EXPECT_GT(outside, exact.y.size() / 2);
  }
}

// ---- the same bits ----------------------------------------------------------------------------

// Where states may grow CUDA has one plan for a step and another one for more, which add up y in
// another order; their states have the same bits.
bool step_has_the_bits_of_many(const ScanCase& c, Device device) {
  return device.is_cpu() || !c.grows();
}

// The sequence in pieces, the state handed on in place.
ScanOutputs run_in_pieces(const ScanInputs& inputs, const std::vector<std::int64_t>& cuts,
                          Stream& stream) {
  const SelectiveScan whole = inputs.op();
  ScanOutputs out{Tensor(inputs.y_shape(), inputs.shape.dtype, stream.device()),
                  inputs.initial.clone(stream)};
  std::int64_t first = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::int64_t last = i < cuts.size() ? cuts[i] : inputs.shape.time;
    SelectiveScan piece = whole;
    piece.x = whole.x.steps(first, last - first);
    piece.dt = whole.dt.steps(first, last - first);
    piece.B = whole.B.steps(first, last - first);
    piece.C = whole.C.steps(first, last - first);
    if (whole.z) piece.z = whole.z.steps(first, last - first);
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

TEST_EACH(SelectiveScan, CutAnywhereGivesTheSameBits, Device device, DType dtype, ScanForm form) {
  ScanCase c = case_of(form, dtype);
  c.time = 70;
  c.channels = 37;
  c.d_state = 6;
  c.reset = true;
  const ScanInputs host(c);
  const SequenceResult expected = scan_reference(host.op());
  const ScanInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs whole = run_scan(inputs, stream);
  const auto expect_whole = [&](const std::vector<std::int64_t>& cuts, const std::string& what) {
    const ScanOutputs pieces = run_in_pieces(inputs, cuts, stream);
    if (step_has_the_bits_of_many(c, device)) return expect_same(pieces, whole, what);
    expect_within(pieces.y, expected.y, what + ": y");
    EXPECT_EQ(bits(pieces.final_state), bits(whole.final_state)) << what << ": final state";
  };
  const std::vector<std::vector<std::int64_t>> all_cuts = {
      {0}, {1}, {3}, {4}, {7}, {8}, {9}, {70}, {5, 5, 6, 38, 69}, {1, 2, 3, 4, 5, 6, 7}};
  for (const auto& cuts : all_cuts) expect_whole(cuts, "cut at " + std::to_string(cuts[0]));
  std::vector<std::int64_t> every;
  for (std::int64_t t = 1; t < c.time; ++t) every.push_back(t);
  expect_whole(every, "step by step");
}

TEST_EACH(SelectiveScan, StepStatesAreTheFinalStatesOfPrefixes, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  c.time = 12;
  c.reset = true;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  // Between steps of a larger tensor: the pitches are the view's.
  Tensor larger({c.batch, c.time + 3, c.channels, c.d_state}, DType::f32, device);
  SelectiveScan with_steps = inputs.op();
  with_steps.step_states = larger.view().steps(2, c.time);
  const ScanOutputs all = run_scan(inputs, with_steps, stream);
  expect_same(all, run_scan(inputs, stream), "with and without step states");
  for (std::int64_t t = 0; t < c.time; ++t) {
    SelectiveScan prefix = inputs.op();
    prefix.x = prefix.x.steps(0, t + 1);
    prefix.dt = prefix.dt.steps(0, t + 1);
    prefix.B = prefix.B.steps(0, t + 1);
    prefix.C = prefix.C.steps(0, t + 1);
    prefix.z = prefix.z.steps(0, t + 1);
    prefix.reset = prefix.reset.columns(0, t + 1);
    Tensor y({c.batch, t + 1, c.channels}, c.dtype, device);
    Tensor state(inputs.state_shape(), DType::f32, device);
    prefix.y = y;
    prefix.final_state = state;
    run(prefix, stream);
    EXPECT_EQ(bits(larger.view().steps(2 + t, 1)), bits(state)) << "step " << t;
  }
}

TEST_EACH(SelectiveScan, ResetsAreSeparateSequencesFromFreshStates, Device device, DType dtype,
          ScanForm form) {
  ScanCase c = case_of(form, dtype);
  c.batch = 1;
  c.time = 40;
  ScanInputs host(c);
  std::vector<std::int32_t> flags(40);
  const std::vector<std::int64_t> starts = {0, 1, 4, 5, 37, 40};
  for (std::size_t i = 0; i + 1 < starts.size(); ++i)
    flags[static_cast<std::size_t>(starts[i])] = 1;
  host.reset = Tensor::from(flags, {1, 40});
  // What the reset must overwrite, not multiply.
  host.initial = Random(2).tensor(host.state_shape(), DType::f32, [] { return std::nan(""); });
  const ScanInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs together = run_scan(inputs, stream);
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    const std::int64_t first = starts[i], count = starts[i + 1] - first;
    SelectiveScan alone = inputs.op();
    alone.x = alone.x.steps(first, count);
    alone.dt = alone.dt.steps(first, count);
    alone.B = alone.B.steps(first, count);
    alone.C = alone.C.steps(first, count);
    alone.z = alone.z.steps(first, count);
    alone.reset = {};
    alone.initial_state = {};
    Tensor y({1, count, c.channels}, dtype, device);
    Tensor state(inputs.state_shape(), DType::f32, device);
    alone.y = y;
    alone.final_state = state;
    run(alone, stream);
    if (count > 1 || step_has_the_bits_of_many(c, device)) {
      EXPECT_EQ(bits(together.y.view().steps(first, count)), bits(y)) << "sequence " << i;
    }
    if (starts[i + 1] == c.time) {
      EXPECT_EQ(bits(together.final_state), bits(state));
    }
  }
  for (double value : values(together.y)) ASSERT_TRUE(std::isfinite(value));
}

TEST_EACH(SelectiveScan, IsCausal, Device device) {
  ScanCase c;
  c.time = 40;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs before = run_scan(inputs, stream);
  ScanInputs changed = inputs.to(device);
  const ScanInputs other = ScanInputs(c, 99).to(device);
  copy(other.xz.view().steps(20, 20), changed.xz.view().steps(20, 20), stream);
  copy(other.dbc.view().steps(20, 20), changed.dbc.view().steps(20, 20), stream);
  const ScanOutputs after = run_scan(changed, stream);
  EXPECT_EQ(bits(before.y.view().steps(0, 20)), bits(after.y.view().steps(0, 20)));
  EXPECT_NE(bits(before.y.view().steps(20, 1)), bits(after.y.view().steps(20, 1)));
}

TEST_EACH(SelectiveScan, BatchOrderAndCompanyDoNotMatter, Device device, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.batch = 5;
  c.time = 33;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs together = run_scan(inputs, stream);
  for (std::int64_t b = 0; b < c.batch; ++b) {
    SelectiveScan alone = inputs.op();
    alone.x = alone.x.rows(b, 1);
    alone.dt = alone.dt.rows(b, 1);
    alone.B = alone.B.rows(b, 1);
    alone.C = alone.C.rows(b, 1);
    alone.z = alone.z.rows(b, 1);
    alone.initial_state = alone.initial_state.rows(b, 1);
    Tensor y({1, c.time, c.channels}, dtype, device);
    Tensor state({1, c.channels, c.d_state}, DType::f32, device);
    alone.y = y;
    alone.final_state = state;
    run(alone, stream);
    EXPECT_EQ(bits(together.y.view().rows(b, 1)), bits(y)) << "row " << b;
    EXPECT_EQ(bits(together.final_state.view().rows(b, 1)), bits(state)) << "row " << b;
  }
}

TEST_EACH(SelectiveScan, ThreadsDoNotMatter, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.batch = 3;
  c.time = 70;
  c.channels = 131;
  c.reset = true;
  const ScanInputs inputs(c);
  Stream one(Device::cpu(), 1);
  const ScanOutputs alone = run_scan(inputs, one);
  for (int threads : {2, 3, 7}) {
    Stream several(Device::cpu(), threads);
    expect_same(run_scan(inputs, several), alone, std::to_string(threads) + " threads");
  }
}

TEST_EACH(SelectiveScan, FinalStateMayBeTheInitialState, Device device) {
  ScanCase c;
  c.time = 40;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs apart = run_scan(inputs, stream);
  expect_same(run_in_pieces(inputs, {}, stream), apart, "in place");
}

TEST_EACH(SelectiveScan, YMayBeXOrDtOrZ, Device device, DType dtype) {
  ScanCase c;
  c.dtype = dtype;
  c.time = 40;
  c.channels = 35;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  const ScanOutputs apart = run_scan(inputs, stream);
  for (int which = 0; which < 3; ++which) {
    ScanInputs copy_of = inputs.to(device);
    SelectiveScan scan = copy_of.op();
    scan.y = which == 0   ? copy_of.xz.view().columns(1, c.channels)
             : which == 1 ? copy_of.dbc.view().columns(0, c.channels)
                          : copy_of.xz.view().columns(c.channels + 2, c.channels);
    run(scan, stream);
    EXPECT_EQ(bits(scan.y), bits(apart.y)) << "operand " << which;
  }
}

// ---- rows, empty sizes, values ----------------------------------------------------------------

TEST_EACH(SelectiveScan, RowMapReadsAndWritesRowsOfALargerState, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  c.batch = 5;
  c.time = 7;
  ScanInputs host(c);
  host.initial = Random(9).normal_tensor({6, c.channels, c.d_state});
  const std::vector<std::int32_t> read = {4, -1, 2, 2, -1}, write = {4, 0, -1, 5, -3};
  const Tensor read_rows = Tensor::from(read, {5}).to(device);
  const Tensor write_rows = Tensor::from(write, {5}).to(device);
  const ScanInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  const Tensor before = inputs.initial.clone();
  Tensor pool = inputs.initial.clone();
  Tensor y(inputs.y_shape(), c.dtype, device);
  Tensor steps(inputs.step_shape(), DType::f32, device);
  SelectiveScan scan = inputs.op();
  scan.initial_state = pool;
  scan.final_state = pool;
  scan.rows = {read_rows, write_rows};
  scan.y = y;
  scan.step_states = steps;
  run(scan, stream);
  for (std::int64_t b = 0; b < 4; ++b) {
    SelectiveScan alone = inputs.op();
    alone.x = alone.x.rows(b, 1);
    alone.dt = alone.dt.rows(b, 1);
    alone.B = alone.B.rows(b, 1);
    alone.C = alone.C.rows(b, 1);
    alone.z = alone.z.rows(b, 1);
    const std::int32_t from = read[static_cast<std::size_t>(b)],
                       to = write[static_cast<std::size_t>(b)];
    alone.initial_state = from < 0 ? ConstTensorView() : before.view().rows(from, 1);
    Tensor one({1, c.time, c.channels}, c.dtype, device);
    Tensor state({1, c.channels, c.d_state}, DType::f32, device);
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

TEST_EACH(SelectiveScan, TimeZeroKeepsTheState, Device device) {
  ScanCase c;
  c.time = 0;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Stream& stream = default_stream(device);
  EXPECT_EQ(bits(run_scan(inputs, stream).final_state), bits(inputs.initial));
  SelectiveScan fresh = inputs.op();
  fresh.initial_state = {};
  for (double value : values(run_scan(inputs, fresh, stream).final_state)) EXPECT_EQ(value, 0);

  const Tensor read = Tensor::from<std::int32_t>({1, 0}, {2}).to(device);
  const Tensor write = Tensor::from<std::int32_t>({2, 3}, {2}).to(device);
  ScanInputs pool = inputs.to(device);
  pool.initial = Random(4).normal_tensor({4, c.channels, c.d_state}).to(device);
  const Tensor before = pool.initial.clone();
  SelectiveScan moved = pool.op();
  Tensor y(inputs.y_shape(), c.dtype, device);
  moved.y = y;
  moved.final_state = pool.initial;
  moved.rows = {read, write};
  run(moved, stream);
  EXPECT_EQ(bits(pool.initial.view().rows(2, 1)), bits(before.view().rows(1, 1)));
  EXPECT_EQ(bits(pool.initial.view().rows(3, 1)), bits(before.view().rows(0, 1)));
  EXPECT_EQ(bits(pool.initial.view().rows(0, 2)), bits(before.view().rows(0, 2)));
}

TEST_EACH(SelectiveScan, EmptyBatchAndNoChannelsAreLegal, Device device) {
  for (const ScanCase& c : {ScanCase{0, 5, 17, 16}, ScanCase{2, 5, 0, 16}, ScanCase{0, 0, 3, 1}}) {
    run_scan(ScanInputs(c).to(device), default_stream(device));
  }
}

TEST_EACH(SelectiveScan, NaNStaysInItsChannelAndRow, Device device, ScanForm form) {
  ScanCase c = case_of(form, DType::f32);
  c.time = 6;
  c.channels = 19;
  for (int which = 0; which < 4; ++which) {
    ScanInputs host(c);
    const std::int64_t channel = 3;
    const std::uint32_t ones = 0xffffffffu;  // a NaN whose every bit is set: none may be lost
    float nan;
    std::memcpy(&nan, &ones, sizeof(nan));
    const std::int64_t t = which < 2 ? 2 : 0;  // from where on
    if (which == 0) host.xz.data<float>()[2 * host.xz.dim(2) + 1 + channel] = nan;
    if (which == 1) host.dbc.data<float>()[2 * host.dbc.dim(2) + channel] = nan;
    Tensor& decays = host.A ? host.A : host.A_log;
    if (which == 2) decays.data<float>()[channel * c.d_state + 5] = nan;
    if (which == 3) host.initial.data<float>()[channel * c.d_state + 5] = nan;
    const ScanOutputs got = run_scan(host.to(device), default_stream(device));
    const std::vector<double> y = values(got.y);
    for (std::int64_t i = 0; i < got.y.count(); ++i) {
      const bool tainted = i % c.channels == channel && i / c.channels % c.time >= t &&
                           (which == 2 || i < c.time * c.channels);
      ASSERT_EQ(std::isnan(y[static_cast<std::size_t>(i)]), tainted) << which << " at " << i;
    }
  }
}

// ---- errors -----------------------------------------------------------------------------------

TEST(SelectiveScan, ErrorsNameTheOperand) {
  const ScanInputs inputs{ScanCase{}};
  Stream& stream = default_stream();
  Tensor y(inputs.y_shape(), DType::f32), state(inputs.state_shape(), DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    SelectiveScan scan = inputs.op();
    scan.y = y;
    scan.final_state = state;
    change(scan);
    expect_error<ArgumentError>("selective_scan: " + text, [&] { run(scan, stream); });
  };
  const Tensor small = Tensor::zeros({2, 9, 16}, DType::f32);
  const Tensor half = Tensor::zeros({2, 9, 17}, DType::bf16);
  Tensor padded({2, 17, 18}, DType::f32);
  const Tensor large = Tensor::zeros({17, 257}, DType::f32);
  expect("x: expected a tensor, got none", [](auto& op) { op.x = {}; });
  expect("dt: expected [2, 9, 17], got [2, 9, 16]", [&](auto& op) { op.dt = small; });
  expect("dt: expected f32, got bf16", [&](auto& op) { op.dt = half; });
  expect("dt_weight: expected [17, 16], got [17, 257]", [&](auto& op) {
    op.dt = small;
    op.dt_weight = large;
  });
  expect("z: expected f32, got bf16", [&](auto& op) { op.z = half; });
  expect("y: expected a tensor, got none", [](auto& op) { op.y = {}; });
  expect("d_state: expected 1 to 256, got 257", [&](auto& op) { op.A_log = large; });
  expect("B: expected [2, 9, 16], got [2, 9, 17]", [&](auto& op) { op.B = op.x; });
  expect("D: expected [17], got [2, 9, 16]", [&](auto& op) { op.D = small; });
  expect("initial_state: expected 3 dimensions, got [17, 257]",
         [&](auto& op) { op.initial_state = large; });
  expect("initial_state: expected 2 rows (one per batch row), got 1", [&](auto& op) {
    op.initial_state = op.initial_state.rows(0, 1);
    op.final_state = {};
  });
  expect("final_state: expected a dense tensor, got a strided view", [&](auto& op) {
    op.initial_state = {};
    op.final_state = padded.view().columns(0, 16);
  });
  expect("x: expected cpu, got cuda:0", [&](auto& op) {
    op.x = ConstTensorView(op.x.data(), {2, 9, 17}, DType::f32, Device::cuda(0));
  });
}

TEST(SelectiveScan, ErrorsOfRowMaps) {
  const ScanInputs inputs{ScanCase{}};
  Stream& stream = default_stream();
  Tensor y(inputs.y_shape(), DType::f32), state = Tensor::zeros({4, 17, 16}, DType::f32);
  const auto expect = [&](const std::string& text, std::vector<std::int32_t> read,
                          std::vector<std::int32_t> write) {
    const Tensor r = Tensor::from(read, {static_cast<std::int64_t>(read.size())});
    const Tensor w = Tensor::from(write, {static_cast<std::int64_t>(write.size())});
    SelectiveScan scan = inputs.op();
    scan.y = y;
    scan.initial_state = state;
    scan.final_state = state;
    scan.rows = {r, w};
    expect_error<ArgumentError>("selective_scan: " + text, [&] { run(scan, stream); });
  };
  expect("rows.read: expected [2], got [3]", {0, 1, 2}, {0, 1});
  expect("rows.read: expected rows below 4, got 4", {0, 4}, {0, 1});
  expect("rows.write: expected rows below 4, got 9", {0, 1}, {9, 1});
  expect(
      "rows.write: expected no row that another batch row reads or writes, got row 1 from batch "
      "row 0",
      {0, 1}, {1, 0});
  expect(
      "rows.write: expected no row that another batch row reads or writes, got row 2 from batch "
      "row 0",
      {0, 1}, {2, 2});
  for (double value : values(state)) ASSERT_EQ(value, 0);
}

}  // namespace
}  // namespace mamba::testing
