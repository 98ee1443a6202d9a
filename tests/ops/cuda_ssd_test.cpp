// How an Ssd is cut on CUDA: every plan and geometry on every case that it can do, and which one is
// chosen. What holds for the chosen one is in ssd_test.cpp and ssd_bits_test.cpp, on every device.
#ifdef MAMBA_HAS_CUDA  // set by the build: the plans are in the library only then
#include <gtest/gtest.h>

#include <limits>

#include "each.hpp"
#include "kernels/ssd/ssd.hpp"
#include "ops/limited_devices.hpp"
#include "ops/ssd_inputs.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

using cuda::SsdGeometry;
using cuda::SsdPlan;

bool is_cut(SsdPlan plan) { return plan == SsdPlan::chunks || plan == SsdPlan::warpgroups; }

struct SsdCut {
  SsdPlan plan;
  SsdGeometry geometry;
  bool leaves_chunks;

  std::string name() const {
    return "plan " + std::to_string(static_cast<int>(plan)) + " heads " +
           std::to_string(geometry.heads) + " segments " + std::to_string(geometry.segments) +
           (leaves_chunks ? " leaves chunks" : "");
  }
  // Products of 16-bit factors round y's twice and a state's once.
  SsdRounding rounding(DType dtype) const {
    SsdRounding rounds;
    if (!is_cut(plan)) return rounds;
    rounds.chunk = 64;
    rounds.y_unit = rounds.state_unit = roundoff(dtype);
    return rounds;
  }
};

std::vector<SsdCut> cuts() {
  std::vector<SsdCut> all{{SsdPlan::step, {}, false}};
  for (const bool leaves : {false, true}) {
    all.push_back({SsdPlan::steps, {}, leaves});
    for (const auto& [heads, segments] : {std::pair{1, 1}, {2, 1}, {8, 1}, {1, 2}, {2, 3}}) {
      all.push_back({SsdPlan::chunks, {heads, segments}, leaves});
      all.push_back({SsdPlan::warpgroups, {heads, segments}, leaves});
    }
    all.push_back({SsdPlan::warpgroups, {2, 1, 1}, leaves});
  }
  return all;
}

// Everything that an Ssd can leave, by every cut that can do it; returns how many did. The
// recurrence gives the same bits in both of its plans, and no plan's y depends on what else it
// leaves.
int expect_every_cut_matches(const SsdInputs& host, Device device, bool leaves_steps) {
  const SsdCase& c = host.shape;
  const SsdInputs inputs = host.to(device);
  const cuda::Limits limits = cuda::limits(device, "test");
  constexpr std::int64_t kept = 128;
  Ssd known = host.op();
  known.chunk_steps = kept;
  SsdResult exact, rounded;
  std::vector<unsigned char> recurrence;
  int ran = 0;
  for (const SsdCut& cut : cuts()) {
    SCOPED_TRACE(c.name() + " " + cut.name());
    const int align = c.aligned ? 8 : 3;
    const Guarded y(inputs.y_shape(), c.dtype, device, align);
    const Guarded last(inputs.state_shape(), DType::f32, device);
    const Guarded steps(inputs.step_shape(), DType::f32, device);
    const Guarded chunks({c.batch, (c.time + kept - 1) / kept, c.channels(), c.d_state}, DType::f32,
                         device);
    Ssd op = inputs.op();
    op.y = y.view();
    op.final_state = last.view();
    if (leaves_steps) op.step_states = steps.view();
    if (cut.leaves_chunks) {
      op.chunk_states = chunks.view();
      op.chunk_steps = kept;
    }
    if (!cuda::can_run(op, cut.plan, limits)) continue;
    ++ran;
    SsdResult& expected = is_cut(cut.plan) ? rounded : exact;
    if (expected.final_state.empty()) {
      expected = ssd_reference(known, cut.rounding(c.dtype), leaves_steps);
    }
    Stream& stream = default_stream(device);
    cuda::run_ssd(op, stream, cut.plan, cut.geometry);
    stream.synchronize();
    expect_within(y.view(), expected.y, "y");
    expect_within(last.view(), expected.final_state, "final state");
    if (leaves_steps) expect_within(steps.view(), expected.step_states, "step states");
    if (cut.leaves_chunks) expect_within(chunks.view(), expected.chunk_states, "chunk states");
    for (const Guarded* output : {&y, &last, &steps, &chunks}) output->expect_untouched("around");
    if (!is_cut(cut.plan)) {
      const std::vector<unsigned char> now = bits(y.view());
      if (recurrence.empty()) recurrence = now;
      EXPECT_EQ(now, recurrence);
    }
    if (::testing::Test::HasFailure()) break;
  }
  return ran;
}
int expect_every_cut_matches(const SsdCase& c, Device device, bool leaves_steps,
                             std::uint64_t seed = 1) {
  return expect_every_cut_matches(SsdInputs(c, seed), device, leaves_steps);
}

#ifdef MAMBA_HAS_SM_90A  // set by the build
constexpr bool built_for_90a = true;
#else
constexpr bool built_for_90a = false;
#endif
// How many cuts a long case of chunked sizes has.
int cuts_of(const SsdCase& c, Device device) {
  if (c.dtype != DType::bf16) return 2;
  const bool warpgroups =
      built_for_90a && cuda::limits(device, "test").capability == 90 && c.head_dim >= 32;
  return warpgroups ? 24 : 12;
}

TEST_EACH(CudaSsd, EveryCutForEverySize, CudaDevice device, DType dtype) {
  struct Sizes {
    std::int64_t heads, head_dim, groups, d_state;
  };
  for (const Sizes& s : {Sizes{3, 64, 1, 128}, Sizes{2, 80, 1, 128}, Sizes{6, 32, 2, 64},
                         Sizes{1, 128, 1, 256}, Sizes{1, 144, 1, 64}, Sizes{5, 16, 1, 128}}) {
    for (const std::int64_t time : {0, 1, 64, 130}) {
      SsdCase c;
      c.time = time;
      c.heads = s.heads;
      c.head_dim = s.head_dim;
      c.groups = s.groups;
      c.d_state = s.d_state;
      c.dtype = dtype;
      c.aligned = true;
      c.batch = time == 64 ? 2 : 1;
      const int ran = expect_every_cut_matches(c, device, false);
      EXPECT_EQ(ran, cuts_of(c, device) + (time == 1 ? 1 : 0));
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(CudaSsd, EveryCutOfSizesThatAreNoMultiples, CudaDevice device, DType dtype) {
  for (const std::int64_t d_state : {1, 3, 16, 33, 65, 100, 256}) {
    for (const std::int64_t head_dim : {1, 8, 70}) {
      for (const std::int64_t time : {1, 5, 37}) {
        SsdCase c;
        c.time = time;
        c.head_dim = head_dim;
        c.d_state = d_state;
        c.dtype = dtype;
        c.aligned = head_dim == 8;
        expect_every_cut_matches(c, device, time == 5);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST_EACH(CudaSsd, EveryCutWithEveryOption, CudaDevice device, DType dtype) {
  for (int options = 0; options < 64; ++options) {
    SsdCase c;
    c.dtype = dtype;
    c.aligned = true;
    c.batch = 1;
    c.heads = 2;
    c.head_dim = 32;
    c.d_state = 64;
    c.time = 140;
    c.D = options & 1;
    c.dt_bias = options & 2;
    c.initial = options & 4;
    c.reset = options & 8;
    c.softplus = options & 16;
    if (options & 32) c.dt_low = 0.25f;
    if (options & 32) c.dt_high = 0.75f;
    expect_every_cut_matches(c, device, false, static_cast<std::uint64_t>(options));
    if (::testing::Test::HasFailure()) return;
  }
}

SsdCase case_of_chunks(DType dtype) {
  SsdCase c;
  c.batch = 1;
  c.heads = 2;
  c.head_dim = 32;
  c.d_state = 64;
  c.time = 200;
  c.dtype = dtype;
  c.aligned = true;
  return c;
}

// From a reset on, what was before does not matter, and before an x that is no number, that
// neither.
TEST_EACH(CudaSsd, EveryCutSelects, CudaDevice device) {
  constexpr std::int64_t bad = 70;  // the step with an x, B and C that are none
  for (const std::int64_t at : {0, 1, 63, 64, 71, 100, 128, 150}) {
    SsdCase c = case_of_chunks(DType::bf16);
    c.head_dim = at % 2 == 0 ? 32 : 80;
    SsdInputs host(c);
    host.reset = resets_at({at}, c.batch, c.time);
    const SsdResult expected =
        ssd_reference(host.op(), SsdCut{SsdPlan::chunks, {}, false}.rounding(c.dtype));
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const bool state_is_bad = at < bad;
    if (state_is_bad) {
      host.initial =
          Tensor::from(std::vector<float>(static_cast<std::size_t>(c.channels() * c.d_state), nan),
                       host.state_shape());
    } else {
      auto* row = host.xBC.data<bf16>() + bad * host.xBC.shape().back();
      for (std::int64_t i = 0; i < host.xBC.shape().back(); ++i) row[i].bits = 0x7fff;
    }
    const SsdInputs inputs = host.to(device);
    for (const SsdCut& cut : cuts()) {
      SCOPED_TRACE("reset at " + std::to_string(at) + " " + cut.name());
      Tensor y(inputs.y_shape(), c.dtype, device);
      Tensor last(inputs.state_shape(), DType::f32, device);
      Ssd op = inputs.op();
      op.y = y;
      op.final_state = last;
      if (cut.leaves_chunks || !cuda::can_run(op, cut.plan, cuda::limits(device, "test"))) continue;
      Stream& stream = default_stream(device);
      cuda::run_ssd(op, stream, cut.plan, cut.geometry);
      stream.synchronize();
      const auto from = [&](std::int64_t first, std::int64_t count) {
        const auto begin = expected.y.begin() + first * c.channels();
        const std::vector<Bounded> part(begin, begin + count * c.channels());
        expect_within(y.view().steps(first, count), part, "y from " + std::to_string(first));
      };
      if (!state_is_bad) from(0, bad);
      from(at, c.time - at);
      expect_within(last.view(), expected.final_state, "final state");
    }
  }
}

TEST(CudaSsd, ChoosesByShape) {
  const auto chosen = [](std::int64_t time, DType dtype, std::int64_t d_state,
                         int capability = 90) {
    Ssd op;  // plan() looks at shapes and alignment alone
    Tensor x({8, time, 24 * 64}, dtype);
    const Tensor A_log({24}, DType::f32), B({8, time, d_state}, dtype);
    op.x = x;
    op.y = x;
    op.A_log = A_log;
    op.B = op.C = B;
    return cuda::plan(op, {227 << 10, 132, capability, true});
  };
  EXPECT_EQ(chosen(1, DType::bf16, 128), SsdPlan::step);
  EXPECT_EQ(chosen(5, DType::bf16, 128), SsdPlan::steps);
  EXPECT_EQ(chosen(512, DType::bf16, 128), built_for_90a ? SsdPlan::warpgroups : SsdPlan::chunks);
  EXPECT_EQ(chosen(512, DType::bf16, 128, 80), SsdPlan::chunks);
  EXPECT_EQ(chosen(512, DType::bf16, 128, 100), SsdPlan::chunks);  // has no such products
  EXPECT_EQ(chosen(512, DType::f32, 128), SsdPlan::steps);
  EXPECT_EQ(chosen(512, DType::bf16, 100), SsdPlan::steps);
}

TEST_EACH(CudaSsdLimits, EveryCut, LesserDevice lesser, CudaDevice device, DType dtype) {
  const cuda::LimitedDevices limited(lesser.limits);
  for (const std::int64_t d_state : {64, 128, 256}) {
    SsdCase c = case_of_chunks(dtype);
    c.time = 70;
    c.heads = 4;
    c.head_dim = 16;
    c.d_state = d_state;
    SsdInputs host(c);
    expect_every_cut_matches(host, device, false);
    const SsdInputs inputs = host.to(device);
    const SsdOutputs out = run_ssd({device}, inputs.op());  // as it is chosen there
    expect_within(out.y, ssd_reference(host.op(), SsdWay{device}.rounding(dtype)).y, "y");
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaSsd, PlansRefuseWhatTheyCannotDo, CudaDevice device) {
  const SsdInputs inputs = SsdInputs(SsdCase{}).to(device);
  Tensor y(inputs.y_shape(), DType::f32, device);
  Ssd op = inputs.op();
  op.y = y;
  for (const SsdPlan plan : {SsdPlan::step, SsdPlan::chunks, SsdPlan::warpgroups}) {
    EXPECT_THROW(cuda::run_ssd(op, default_stream(device), plan), ArgumentError);
  }
}

}  // namespace
}  // namespace mamba::testing
#endif
