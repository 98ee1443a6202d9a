// Ssd against the reference in double, by every plan of every device. What it promises to the bit
// is in ssd_bits_test.cpp.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <mamba/detail/scan_chunk.hpp>

#include "ops/ssd_inputs.hpp"
#include "ops/targets.hpp"

namespace mamba::testing {
namespace {

// Everything against the reference, through guarded and strided outputs. `chunk_steps`: 0 for the
// device's own.
void expect_matches_reference(const SsdInputs& host, const SsdWay& way,
                              std::int64_t chunk_steps = 0) {
  const SsdCase& c = host.shape;
  const Device device = way.device;
  const SsdInputs inputs = host.to(device);
  Ssd ssd = inputs.op();
  ssd.chunk_steps = chunk_steps > 0 ? chunk_steps : detail::scan_chunk_steps(ssd, way.stream());
  const std::int64_t chunks = (c.time + ssd.chunk_steps - 1) / ssd.chunk_steps;
  Ssd known = host.op();
  known.chunk_steps = ssd.chunk_steps;
  const SsdResult expected = ssd_reference(known, way.rounding(c.dtype), true);
  const Guarded y(inputs.y_shape(), c.dtype, device, 5);
  const Guarded state(inputs.state_shape(), DType::f32, device);
  const Guarded steps(inputs.step_shape(), DType::f32, device);
  const Guarded kept({c.batch, chunks, c.channels(), c.d_state}, DType::f32, device);
  for (const bool all : {false, true}) {
    const std::string what = c.name() + (all ? " with all outputs" : "");
    Ssd op = ssd;
    op.y = y.view();
    op.final_state = state.view();
    if (all) op.chunk_states = kept.view();
    if (all) op.step_states = steps.view();
    if (!way.can_run(op)) op.step_states = {};
    way.run(op);
    expect_within(y.view(), expected.y, what + ": y");
    expect_within(state.view(), expected.final_state, what + ": final state");
    if (all) expect_within(kept.view(), expected.chunk_states, what + ": chunk states");
    if (op.step_states) expect_within(steps.view(), expected.step_states, what + ": step states");
    for (const Guarded* output : {&y, &state, &steps, &kept}) output->expect_untouched(what);
  }
}
void expect_matches_reference(const SsdCase& c, const SsdWay& way, std::uint64_t seed = 1) {
  expect_matches_reference(SsdInputs(c, seed), way);
}

TEST_EACH(Ssd, MatchesReferenceForEveryShape, SsdWay way, DType dtype) {
  struct Sizes {
    std::int64_t heads, head_dim, groups, d_state;
  };
  for (const Sizes& s :
       {Sizes{4, 64, 1, 128}, Sizes{6, 8, 3, 16}, Sizes{4, 80, 2, 128}, Sizes{3, 32, 1, 16},
        Sizes{5, 1, 1, 16}, Sizes{2, 1, 2, 1}, Sizes{3, 7, 1, 5}, Sizes{2, 17, 2, 100},
        Sizes{1, 256, 1, 256}, Sizes{35, 4, 1, 8}, Sizes{4, 128, 4, 64}, Sizes{2, 33, 1, 17}}) {
    for (const std::int64_t time : {3, 20, 70}) {
      SsdCase c;
      c.batch = time == 20 ? 1 : 2;
      c.time = time;
      c.heads = s.heads;
      c.head_dim = s.head_dim;
      c.groups = s.groups;
      c.d_state = s.d_state;
      c.dtype = dtype;
      c.aligned = time == 20;
      expect_matches_reference(c, way);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(Ssd, MatchesReferenceForEveryTime, SsdWay way, DType dtype) {
  for (const std::int64_t time : {0, 1, 2, 7, 15, 16, 17, 33, 63, 64, 65, 127, 128, 130, 300}) {
    for (const bool reset : {false, true}) {
      SsdCase c;
      c.time = time;
      c.head_dim = 10;
      c.d_state = 5;
      c.dtype = dtype;
      c.reset = reset;
      expect_matches_reference(c, way, static_cast<std::uint64_t>(time));
    }
  }
}

TEST_EACH(Ssd, MatchesReferenceForEveryChoiceOfOptions, SsdWay way, DType dtype) {
  for (int choice = 0; choice < 64; ++choice) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 40;
    c.d_state = 7;
    c.D = choice & 1;
    c.dt_bias = choice & 2;
    c.initial = choice & 4;
    c.reset = choice & 8;
    c.softplus = choice & 16;
    if (choice & 32) c.dt_low = 0.25f;
    if (choice & 32) c.dt_high = 0.75f;
    expect_matches_reference(c, way, static_cast<std::uint64_t>(choice));
  }
}

TEST_EACH(Ssd, MatchesReferenceOnEveryTarget, SsdWay way, DType dtype) {
  if (way.device.is_cuda()) GTEST_SKIP() << "targets are the CPU's";
  for_each_target([&](const char*) {
    SsdCase c;
    c.dtype = dtype;
    c.time = 83;
    c.head_dim = 39;
    c.d_state = 18;
    c.reset = true;
    expect_matches_reference(c, way);
  });
}

TEST_EACH(Ssd, TakesAnyChunkLengthOnTheCpu, SsdWay way) {
  if (way.device.is_cuda()) GTEST_SKIP() << "has lengths of its own";
  for (const std::int64_t chunk_steps : {1, 5, 16, 63, 64, 65, 70, 128, 1000}) {
    SsdCase c;
    c.time = 200;
    c.reset = chunk_steps % 2 == 0;
    expect_matches_reference(SsdInputs(c), way, chunk_steps);
  }
}

// dt far below zero: the state is kept over thousands of steps, and softplus is an exponential.
TEST_EACH(Ssd, LongMemoryMatchesReference, SsdWay way) {
  for (const double dt : {-10.0, -20.0, -80.0}) {
    SsdCase c;
    c.time = 1000;
    SsdInputs host(c);
    Random random(5);
    host.dt = Tensor::zeros(host.dt.shape(), DType::f32);
    host.dt_bias = random.uniform_tensor({c.heads}, dt - 1e-3, dt);
    host.initial = Tensor::zeros(host.state_shape(), DType::f32);
    const SsdResult expected = ssd_reference(host.op(), way.rounding(c.dtype));
    const SsdInputs inputs = host.to(way.device);
    const SsdOutputs got = run_ssd(way, inputs.op());
    expect_within(got.final_state, expected.final_state, "dt " + std::to_string(dt));
    // The bound is relative: this far down an absolute one would pass anything.
    std::size_t told = 0;
    for (const Bounded& state : expected.final_state) {
      told += std::abs(state.value) > 2 * state.bound ? 1 : 0;
    }
    EXPECT_GT(told, expected.final_state.size() / 2) << dt;
  }
}

TEST_EACH(Ssd, AMillionStepsMatchReference, SsdWay way) {
  SsdCase c;
  c.batch = 1;
  c.time = 1'000'000;
  c.heads = 2;
  c.head_dim = 2;
  c.d_state = 2;
  const SsdInputs host(c);
  const SsdResult expected = ssd_reference(host.op(), way.rounding(c.dtype));
  const SsdInputs inputs = host.to(way.device);
  const SsdOutputs got = run_ssd(way, inputs.op());
  expect_within(got.y, expected.y, "y");
  expect_within(got.final_state, expected.final_state, "final state");
}

TEST_EACH(Ssd, LargeInputsStayFinite, SsdWay way, DType dtype) {
  for (const std::int64_t time : {5, 50, 150}) {
    SsdCase c;
    c.dtype = dtype;
    c.time = time;
    SsdInputs host(c);
    Random random(3);
    // f16 y overflows above 65504.
    const double limit = dtype == DType::f16 ? 4 : 100;
    const auto extreme = [&] { return random.integer(0, 1) != 0 ? limit : -limit; };
    host.xBC = random.tensor(host.xBC.shape(), dtype, extreme);
    host.dt = random.tensor(host.dt.shape(), dtype, extreme);
    const SsdResult expected = ssd_reference(host.op(), way.rounding(dtype));
    const SsdInputs inputs = host.to(way.device);
    const SsdOutputs got = run_ssd(way, inputs.op());
    for (double value : values(got.y)) ASSERT_TRUE(std::isfinite(value));
    for (double value : values(got.final_state)) ASSERT_TRUE(std::isfinite(value));
    expect_within(got.y, expected.y, c.name());
    expect_within(got.final_state, expected.final_state, c.name());
  }
}

// Offsets of steps, rows and state rows past 2^31 elements. On the CPU what is never touched takes
// no memory.
TEST_EACH(Ssd, OffsetsPastTwoToThe31, SsdWay way) {
  SsdCase c;
  c.time = 17;
  c.dtype = DType::bf16;
  const SsdInputs host(c);
  const SsdResult expected = ssd_reference(host.op(), way.rounding(c.dtype));
  const std::int64_t rows = (std::int64_t{1} << 31) / (c.channels() * c.d_state) + 2;
  const std::int64_t apart = (std::int64_t{1} << 27) + 8;  // 16 of them are past 2^31
  Tensor wide, pool;
  try {
    wide = Tensor({1, c.time, apart}, c.dtype, way.device);
    pool = Tensor({rows, c.channels(), c.d_state}, DType::f32, way.device);
  } catch (const std::exception&) {
    GTEST_SKIP() << "too little memory";
  }
  const SsdInputs inputs = host.to(way.device);
  Stream& stream = way.stream();
  Ssd op = rows_of(inputs.op(), 0, 1);
  const TensorView x = wide.view().columns(8, c.channels());
  copy(op.x, x, stream);
  copy(inputs.initial.view().rows(0, 1), pool.view().rows(rows - 1, 1), stream);
  const Tensor last = Tensor::from<std::int32_t>({static_cast<std::int32_t>(rows - 1)}, {1});
  const Tensor row = last.to(way.device);
  op.x = x;
  op.y = x;
  op.initial_state = op.final_state = pool;
  op.rows = {row, row};
  way.run(op);
  const auto first = [](std::vector<Bounded> all) {
    all.resize(all.size() / 2);
    return all;
  };
  expect_within(x, first(expected.y), "y");
  expect_within(pool.view().rows(rows - 1, 1), first(expected.final_state), "final state");
}

// The bound means something: a state kept in 16 bits is outside it.
TEST_EACH(Ssd, BoundRejectsA16BitState, SsdWay way) {
  SsdCase c;
  c.time = 100;
  const SsdInputs host(c);
  const SsdResult exact = ssd_reference(host.op(), way.rounding(c.dtype));
  const auto in_bf16 = [](double h) { return double{float(bf16(static_cast<float>(h)))}; };
  const auto in_f16 = [](double h) { return double{float(f16(static_cast<float>(h)))}; };
  for (const auto keep : {+in_bf16, +in_f16}) {
    const SsdResult rounded = ssd_reference(host.op(), {}, false, keep);
    std::size_t outside = 0;
    for (std::size_t i = 0; i < exact.y.size(); ++i) {
      const double allowed = exact.y[i].bound + f32_roundoff * std::abs(exact.y[i].value);
      outside += std::abs(rounded.y[i].value - exact.y[i].value) > allowed ? 1 : 0;
    }
    EXPECT_GT(outside, exact.y.size() / 2);
  }
}

TEST(Ssd, ThePlanFollowsTimeAndHeads) {
  using host::SsdPlan;
  for (const std::int64_t time : {0, 1, 15, 16, 64, 100}) {
    for (const std::int64_t head_dim : {8, 15, 16, 64}) {
      SsdCase c;
      c.time = time;
      c.head_dim = head_dim;
      const SsdInputs inputs(c);
      Ssd op = inputs.op();
      const SsdPlan expected = time < 16 || head_dim < 16 ? SsdPlan::steps : SsdPlan::chunks;
      EXPECT_EQ(host::plan(op), expected) << c.name();
      Tensor steps(inputs.step_shape(), DType::f32);
      op.step_states = steps;
      EXPECT_EQ(host::plan(op), SsdPlan::steps);
      EXPECT_FALSE(host::can_run(op, SsdPlan::chunks));
    }
  }
}

}  // namespace
}  // namespace mamba::testing
