// What Ssd promises to the bit, its rows, resets and empty sizes, and its errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "ops/ssd_inputs.hpp"

namespace mamba::testing {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// The sequence in pieces, the state handed on in place.
SsdOutputs run_in_pieces(const SsdWay& way, const SsdInputs& inputs,
                         const std::vector<std::int64_t>& cuts) {
  const Ssd whole = inputs.op();
  Stream& stream = way.stream();
  SsdOutputs out{Tensor(inputs.y_shape(), inputs.shape.dtype, way.device),
                 inputs.initial.clone(stream)};
  std::int64_t first = 0;
  for (std::size_t i = 0; i <= cuts.size(); ++i) {
    const std::int64_t last = i < cuts.size() ? cuts[i] : inputs.shape.time;
    Ssd piece = steps_of(whole, first, last - first);
    piece.initial_state = out.final_state;
    piece.final_state = out.final_state;
    piece.y = out.y.view().steps(first, last - first);
    way.run(piece);
    first = last;
  }
  stream.synchronize();
  return out;
}

std::vector<std::int64_t> every_step(std::int64_t time) {
  std::vector<std::int64_t> all;
  for (std::int64_t t = 1; t < time; ++t) all.push_back(t);
  return all;
}

SsdCase case_of_two_groups(DType dtype, std::int64_t time) {
  SsdCase c;
  c.dtype = dtype;
  c.time = time;
  c.heads = 4;
  c.head_dim = 13;
  c.groups = 2;
  c.d_state = 6;
  return c;
}

TEST_EACH(SsdBits, TheChosenPlanIsWhatRuns, Device device, DType dtype) {
  for (const std::int64_t time : {3, 80}) {
    SsdCase c = case_of_two_groups(dtype, time);
    c.head_dim = 16;
    const SsdInputs inputs = SsdInputs(c).to(device);
    const SsdWay chosen{device, time == 3 ? host::SsdPlan::steps : host::SsdPlan::chunks};
    Ssd op = inputs.op();
    Tensor y(inputs.y_shape(), dtype, device);
    op.y = y;
    run(op, default_stream(device));
    EXPECT_EQ(bits(y), bits(run_ssd(chosen, inputs.op()).y)) << time;
  }
}

TEST_EACH(SsdBits, SameBitsTwice, SsdWay way, DType dtype) {
  SsdCase c = case_of_two_groups(dtype, 130);
  c.reset = true;
  const SsdInputs inputs = SsdInputs(c).to(way.device);
  expect_same(run_ssd(way, inputs.op()), run_ssd(way, inputs.op()), c.name());
}

TEST_EACH(SsdBits, CutAnywhereMatchesReference, SsdWay way, DType dtype) {
  SsdCase c = case_of_two_groups(dtype, 150);
  c.reset = true;
  const SsdInputs host(c);
  const SsdResult expected = ssd_reference(host.op(), way.rounding(dtype));
  const SsdInputs inputs = host.to(way.device);
  const SsdOutputs whole = run_ssd(way, inputs.op());
  const std::vector<std::vector<std::int64_t>> all_cuts = {
      {0}, {1}, {9}, {64}, {65, 65}, {64, 128}, {150}, {5, 38, 101}, every_step(c.time)};
  for (const auto& cuts : all_cuts) {
    const SsdOutputs got = run_in_pieces(way, inputs, cuts);
    const std::string what = "cut at " + std::to_string(cuts[0]);
    expect_within(got.y, expected.y, what + ": y");
    expect_within(got.final_state, expected.final_state, what + ": final state");
    if (way.is_steps()) expect_same(got, whole, what);
  }
}

// Chunks begin at multiples of their length: cut there, nothing differs.
TEST_EACH(SsdBits, CutBetweenChunksGivesTheSameBits, SsdWay way, DType dtype) {
  if (!way.is_chunks()) GTEST_SKIP() << "the CPU's plan of chunks";
  SsdCase c = case_of_two_groups(dtype, 5 * host::ssd_chunk / 2);
  c.reset = true;
  const SsdInputs inputs(c);
  const SsdOutputs whole = run_ssd(way, inputs.op());
  const std::int64_t chunk = host::ssd_chunk;
  for (const auto& cuts : {std::vector<std::int64_t>{chunk}, {2 * chunk}, {0, chunk, 2 * chunk}}) {
    expect_same(run_in_pieces(way, inputs, cuts), whole, "cut at " + std::to_string(cuts[0]));
  }
}

TEST_EACH(SsdBits, StepStatesAreTheFinalStatesOfPrefixes, SsdWay way) {
  SsdCase c;
  c.time = 12;
  c.reset = true;
  const SsdInputs inputs = SsdInputs(c).to(way.device);
  Stream& stream = way.stream();
  // Between steps of a larger tensor: the pitches are the view's.
  Tensor larger({c.batch, c.time + 3, c.channels(), c.d_state}, DType::f32, way.device);
  Ssd with_steps = inputs.op();
  with_steps.step_states = larger.view().steps(2, c.time);
  if (!way.can_run(with_steps)) GTEST_SKIP() << "the plan has no states between";
  const SsdOutputs all = run_ssd(way, with_steps);
  for (std::int64_t t = 0; t < c.time; ++t) {
    Ssd prefix = steps_of(inputs.op(), 0, t + 1);
    Tensor all_steps({c.batch, t + 1, c.channels(), c.d_state}, DType::f32, way.device);
    prefix.step_states = all_steps;  // so that it is computed as the whole
    const SsdOutputs got = run_ssd(way, prefix, stream);
    EXPECT_EQ(bits(larger.view().steps(2 + t, 1)), bits(got.final_state)) << "step " << t;
  }
  EXPECT_EQ(bits(larger.view().steps(1 + c.time, 1)), bits(all.final_state));
}

TEST_EACH(SsdBits, BatchOrderAndCompanyDoNotMatter, SsdWay way, DType dtype) {
  for (const std::int64_t time : {1, 33, 100}) {
    SsdCase c = case_of_two_groups(dtype, time);
    c.batch = 5;
    const SsdInputs inputs = SsdInputs(c).to(way.device);
    const SsdOutputs together = run_ssd(way, inputs.op());
    for (std::int64_t b = 0; b < c.batch; ++b) {
      Ssd alone = rows_of(inputs.op(), b, 1);
      alone.initial_state = alone.initial_state.rows(b, 1);
      const SsdOutputs got = run_ssd(way, alone);
      EXPECT_EQ(bits(together.y.view().rows(b, 1)), bits(got.y)) << "row " << b;
      EXPECT_EQ(bits(together.final_state.view().rows(b, 1)), bits(got.final_state)) << b;
    }
  }
}

TEST_EACH(SsdBits, ThreadsDoNotMatter, SsdWay way, DType dtype) {
  if (way.device.is_cuda()) GTEST_SKIP() << "threads are the CPU's";
  SsdCase c = case_of_two_groups(dtype, 100);
  c.batch = 3;
  c.heads = 42;
  c.reset = true;
  const SsdInputs inputs(c);
  Stream one(Device::cpu(), 1);
  const SsdOutputs alone = run_ssd(way, inputs.op(), one);
  for (const int threads : {2, 3, 7}) {
    Stream several(Device::cpu(), threads);
    expect_same(run_ssd(way, inputs.op(), several), alone, std::to_string(threads) + " threads");
  }
}

TEST_EACH(SsdBits, FinalStateMayBeTheInitialState, SsdWay way) {
  for (const std::int64_t time : {0, 1, 40, 100}) {
    const SsdInputs inputs = SsdInputs(case_of_two_groups(DType::f32, time)).to(way.device);
    expect_same(run_in_pieces(way, inputs, {}), run_ssd(way, inputs.op()), "in place");
  }
}

TEST_EACH(SsdBits, YMayBeX, SsdWay way, DType dtype) {
  for (const std::int64_t time : {9, 100}) {
    const SsdInputs inputs = SsdInputs(case_of_two_groups(dtype, time)).to(way.device);
    const SsdOutputs apart = run_ssd(way, inputs.op());
    SsdInputs copied = inputs.to(way.device);
    Ssd op = copied.op();
    op.y = copied.xBC.view().columns(1, copied.shape.channels());
    way.run(op);
    EXPECT_EQ(bits(op.y), bits(apart.y)) << time;
  }
}

// ---- resets and causality ---------------------------------------------------------------------

// What lies before a reset is overwritten, not multiplied.
TEST_EACH(SsdBits, ResetsAreSeparateSequencesFromFreshStates, SsdWay way, DType dtype) {
  SsdCase c = case_of_two_groups(dtype, 150);
  c.batch = 1;
  SsdInputs host(c);
  const std::vector<std::int64_t> starts = {0, 1, 4, 5, 37, 64, 130, 149, 150};
  host.initial = Random(2).tensor(host.state_shape(), DType::f32, [] { return nan; });
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) {
    // Of sequence i everything is known, all others are NaN.
    SsdInputs known = host.to(Device::cpu());
    known.reset = resets_at({starts.begin(), starts.end() - 1}, 1, c.time);
    Tensor poison = Random(3).tensor(host.xBC.shape(), dtype, [] { return nan; });
    Tensor dt = Random(3).tensor(host.dt.shape(), dtype, [] { return nan; });
    const std::int64_t first = starts[i], count = starts[i + 1] - first;
    Stream& stream = default_stream();
    copy(host.xBC.view().steps(first, count), poison.view().steps(first, count), stream);
    copy(host.dt.view().steps(first, count), dt.view().steps(first, count), stream);
    known.xBC = std::move(poison);
    known.dt = std::move(dt);
    Ssd alone = steps_of(host.op(), first, count);
    alone.initial_state = {};
    const SsdResult expected = ssd_reference(alone, way.rounding(dtype));
    const SsdInputs inputs = known.to(way.device);
    const SsdOutputs got = run_ssd(way, inputs.op());
    expect_within(got.y.view().steps(first, count), expected.y, "sequence " + std::to_string(i));
    if (starts[i + 1] == c.time) {
      expect_within(got.final_state, expected.final_state, "final state");
    }
  }
}

TEST_EACH(SsdBits, NaNInALaterStepDoesNotReachAnEarlierOne, SsdWay way, DType dtype) {
  for (const std::int64_t at : {1, 7, 40, 63, 64, 99}) {
    SsdCase c = case_of_two_groups(dtype, 100);
    const SsdInputs host(c);
    const SsdOutputs before = run_ssd(way, host.to(way.device).op());
    for (int which = 0; which < 4; ++which) {
      SsdInputs poisoned = host.to(Device::cpu());
      Tensor& tensor = which == 0 ? poisoned.dt : poisoned.xBC;
      const std::int64_t width = c.groups * c.d_state;
      const std::int64_t column = which == 0   ? 2
                                  : which == 1 ? 1
                                  : which == 2 ? 1 + c.channels()
                                               : 2 + c.channels() + width;
      const std::int64_t columns = which == 0 ? c.heads : which == 1 ? c.channels() : width;
      const TensorView part = tensor.view().columns(column, columns).steps(at, c.time - at);
      copy(Random(1).tensor(part.shape(), dtype, [] { return nan; }), part, default_stream());
      const SsdInputs inputs = poisoned.to(way.device);
      const SsdOutputs after = run_ssd(way, inputs.op());
      EXPECT_EQ(bits(before.y.view().steps(0, at)), bits(after.y.view().steps(0, at)))
          << "operand " << which << ", step " << at;
      for (double value : values(after.y.view().steps(at, 1))) ASSERT_TRUE(std::isnan(value));
    }
  }
}

TEST_EACH(SsdBits, NaNStaysInItsHeadAndRow, SsdWay way) {
  for (const std::int64_t time : {6, 80}) {
    for (int which = 0; which < 6; ++which) {
      const SsdCase c = case_of_two_groups(DType::f32, time);
      SsdInputs host(c);
      const std::int64_t head = 1, from = which < 4 ? 2 : 0;  // and the first batch row
      const std::int64_t step = from * host.xBC.dim(2);
      const std::uint32_t ones = 0xffffffffu;  // a NaN whose every bit is set: none may be lost
      float all_set;
      std::memcpy(&all_set, &ones, sizeof(all_set));
      float* xBC = host.xBC.data<float>();
      if (which == 0) host.dt.data<float>()[from * host.dt.dim(2) + 2 + head] = all_set;
      if (which == 1) xBC[step + 1 + head * c.head_dim + 4] = all_set;
      if (which == 2) xBC[step + 1 + c.channels() + 3] = all_set;  // B and C of the first group
      if (which == 3) xBC[step + 2 + c.channels() + 2 * c.d_state + 3] = all_set;
      if (which == 4) host.A_log.data<float>()[head] = all_set;
      if (which == 5) {
        host.initial.data<float>()[(head * c.head_dim + 4) * c.d_state + 5] = all_set;
      }
      const SsdInputs inputs = host.to(way.device);
      const SsdOutputs got = run_ssd(way, inputs.op());
      const std::vector<double> y = values(got.y);
      for (std::int64_t i = 0; i < got.y.count(); ++i) {
        const std::int64_t channel = i % c.channels(), t = i / c.channels() % c.time;
        const bool row = i / c.channels() / c.time == 0 || which == 4;
        const bool of_head = channel / c.head_dim == head, of_group = channel < 2 * c.head_dim;
        const bool of_channel = channel == head * c.head_dim + 4;
        const bool where = which == 1 || which == 5 ? of_channel
                           : which == 2             ? of_group
                           : which == 3             ? of_group && t == from
                                                    : of_head;
        ASSERT_EQ(std::isnan(y[static_cast<std::size_t>(i)]), row && where && t >= from)
            << which << " at " << i;
      }
    }
  }
}

// ---- rows, empty sizes ------------------------------------------------------------------------

TEST_EACH(SsdBits, RowMapReadsAndWritesRowsOfALargerState, SsdWay way) {
  for (const std::int64_t time : {0, 1, 7, 70}) {
    SsdCase c = case_of_two_groups(DType::f32, time);
    c.batch = 5;
    SsdInputs host(c);
    host.initial = Random(9).normal_tensor({6, c.channels(), c.d_state});
    const std::vector<std::int32_t> read = {4, -1, 2, 2, -1}, write = {4, 0, -1, 5, -3};
    const Tensor read_rows = Tensor::from(read, {5}).to(way.device);
    const Tensor write_rows = Tensor::from(write, {5}).to(way.device);
    const SsdInputs inputs = host.to(way.device);
    const Tensor before = inputs.initial.clone();
    Tensor pool = inputs.initial.clone();
    const Guarded y(inputs.y_shape(), c.dtype, way.device, 3);
    const Guarded steps(inputs.step_shape(), DType::f32, way.device);
    Ssd op = inputs.op();
    op.initial_state = op.final_state = pool;
    op.rows = {read_rows, write_rows};
    op.y = y.view();
    op.step_states = steps.view();
    const bool with_steps = way.can_run(op);
    if (!with_steps) op.step_states = {};
    way.run(op);
    for (std::int64_t b = 0; b < 4; ++b) {
      Ssd alone = rows_of(inputs.op(), b, 1);
      const std::int32_t from = read[static_cast<std::size_t>(b)];
      const std::int32_t to = write[static_cast<std::size_t>(b)];
      alone.initial_state = from < 0 ? ConstTensorView() : before.view().rows(from, 1);
      Tensor steps_alone({1, c.time, c.channels(), c.d_state}, DType::f32, way.device);
      if (with_steps) alone.step_states = steps_alone;  // so that it is computed as the whole
      const SsdOutputs one = run_ssd(way, alone);
      EXPECT_EQ(bits(y.view().rows(b, 1)), bits(one.y)) << "batch row " << b;
      if (to >= 0) {
        EXPECT_EQ(bits(pool.view().rows(to, 1)), bits(one.final_state)) << "batch row " << b;
      }
    }
    for (const std::int64_t row : {1, 2, 3}) {  // written by nobody
      EXPECT_EQ(bits(pool.view().rows(row, 1)), bits(before.view().rows(row, 1))) << row;
    }
    for (double value : values(y.view().rows(4, 1))) EXPECT_EQ(value, 0);
    if (with_steps) {
      for (double value : values(steps.view().rows(4, 1))) EXPECT_EQ(value, 0);
    }
    y.expect_untouched("y");
    steps.expect_untouched("step states");
  }
}

TEST_EACH(SsdBits, TimeZeroKeepsTheState, SsdWay way) {
  SsdCase c;
  c.time = 0;
  const SsdInputs inputs = SsdInputs(c).to(way.device);
  EXPECT_EQ(bits(run_ssd(way, inputs.op()).final_state), bits(inputs.initial));
  Ssd fresh = inputs.op();
  fresh.initial_state = {};
  for (double value : values(run_ssd(way, fresh).final_state)) EXPECT_EQ(value, 0);
}

TEST_EACH(SsdBits, EmptyBatchIsLegal, SsdWay way) {
  for (const std::int64_t time : {0, 5, 70}) {
    SsdCase c;
    c.batch = 0;
    c.time = time;
    const SsdInputs inputs = SsdInputs(c).to(way.device);
    run_ssd(way, inputs.op());
  }
}

// ---- errors -----------------------------------------------------------------------------------

TEST(SsdBits, ErrorsNameTheOperand) {
  SsdCase c;
  c.heads = 4;
  SsdInputs inputs(c);
  Stream& stream = default_stream();
  Tensor y(inputs.y_shape(), DType::f32), state(inputs.state_shape(), DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    Ssd ssd = inputs.op();
    ssd.y = y;
    ssd.final_state = state;
    change(ssd);
    expect_error<ArgumentError>("ssd: " + text, [&] { run(ssd, stream); });
  };
  const Tensor small = Tensor::zeros({2, 9, 16}, DType::f32);
  const Tensor half = Tensor::zeros({2, 9, 4}, DType::bf16);
  const Tensor large = Tensor::zeros({2, 9, 4 * 257}, DType::f32);
  const Tensor no_heads = Tensor::zeros({0}, DType::f32), many = Tensor::zeros({33}, DType::f32);
  Tensor padded({2, 32, 18}, DType::f32);
  expect("x: expected a tensor, got none", [](auto& op) { op.x = {}; });
  expect("heads: expected 1 to 1073741824, got 0", [&](auto& op) { op.A_log = no_heads; });
  expect("head_dim: expected 1 to 256, got 0", [&](auto& op) { op.A_log = many; });
  expect("head_dim: expected 1 to 256, got 257", [&](auto& op) { op.x = large; });
  expect("dt: expected [2, 9, 4], got [2, 9, 16]", [&](auto& op) { op.dt = small; });
  expect("dt: expected f32, got bf16", [&](auto& op) { op.dt = half; });
  expect("groups: expected a divisor of 4 heads, got 3", [](auto& op) { op.groups = 3; });
  expect("groups: expected a divisor of 4 heads, got 0", [](auto& op) { op.groups = 0; });
  expect("d_state: expected 1 to 256, got 1028", [&](auto& op) { op.B = large; });
  expect("C: expected [2, 9, 16], got [2, 9, 32]", [](auto& op) { op.C = op.x; });
  expect("D: expected [4], got [2, 9, 16]", [&](auto& op) { op.D = small; });
  expect("dt_bias: expected [4], got [33]", [&](auto& op) { op.dt_bias = many; });
  expect("dt_low: expected a finite number of at least 0, got -1",
         [](auto& op) { op.dt_low = -1; });
  expect("dt_low: expected a finite number of at least 0, got nan",
         [](auto& op) { op.dt_low = nan; });
  expect("dt_high: expected at least dt_low, 0.5, got 0.25", [](auto& op) {
    op.dt_low = 0.5f;
    op.dt_high = 0.25f;
  });
  expect("dt_high: expected at least dt_low, 0, got nan", [](auto& op) { op.dt_high = nan; });
  expect("y: expected a tensor, got none", [](auto& op) { op.y = {}; });
  expect(
      "y: expected the memory of x, in its dtype and pitches, or other memory, got a part of "
      "it, or in another form",
      [&](auto& op) { op.y = inputs.xBC.view().columns(2, 32); });
  expect("chunk_steps: expected 1 to 1073741824, got 0",
         [&](auto& op) { op.chunk_states = state; });
  expect("chunk_states: expected [2, 3, 32, 16], got [2, 32, 16]", [&](auto& op) {
    op.chunk_states = state;
    op.chunk_steps = 4;
  });
  expect("initial_state: expected 2 rows (one per batch row), got 1", [&](auto& op) {
    op.initial_state = op.initial_state.rows(0, 1);
    op.final_state = {};
  });
  expect("final_state: expected a dense tensor, got a strided view", [&](auto& op) {
    op.initial_state = {};
    op.final_state = padded.view().columns(0, 16);
  });
  expect("x: expected cpu, got cuda:0", [&](auto& op) {
    op.x = ConstTensorView(op.x.data(), {2, 9, 32}, DType::f32, Device::cuda(0));
  });
}

TEST(SsdBits, ErrorsOfRowMaps) {
  const SsdInputs inputs{SsdCase{}};
  Stream& stream = default_stream();
  Tensor y(inputs.y_shape(), DType::f32), state = Tensor::zeros({4, 24, 16}, DType::f32);
  const auto expect = [&](const std::string& text, std::vector<std::int32_t> read,
                          std::vector<std::int32_t> write) {
    const Tensor r = Tensor::from(read, {static_cast<std::int64_t>(read.size())});
    const Tensor w = Tensor::from(write, {static_cast<std::int64_t>(write.size())});
    Ssd ssd = inputs.op();
    ssd.y = y;
    ssd.initial_state = ssd.final_state = state;
    ssd.rows = {r, w};
    expect_error<ArgumentError>("ssd: " + text, [&] { run(ssd, stream); });
  };
  expect("rows.read: expected [2], got [3]", {0, 1, 2}, {0, 1});
  expect("rows.read: expected rows below 4, got 4", {0, 4}, {0, 1});
  expect("rows.write: expected rows below 4, got 9", {0, 1}, {9, 1});
  expect(
      "rows.write: expected no row that another batch row reads or writes, got row 2 from batch "
      "row 0",
      {0, 1}, {2, 2});
  for (double value : values(state)) ASSERT_EQ(value, 0);
}

}  // namespace
}  // namespace mamba::testing
