// How a selective scan and its gradient are cut on CUDA: every plan and geometry on every case that
// it can do, and which one is chosen. What holds for the chosen one is in selective_scan_test.cpp
// and selective_scan_grad_test.cpp, on every device.
#ifdef MAMBA_HAS_CUDA  // set by the build: the plans are in the library only then
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "each.hpp"
#include "kernels/scan/selective_scan.hpp"
#include "ops/limited_devices.hpp"
#include "ops/scan_inputs.hpp"
#include "ops/sequence_reference.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

using cuda::ScanGeometry;
using cuda::ScanPlan;

constexpr std::int64_t chunk = 16;  // steps, the answer of scan_chunk_steps()

struct Cut {
  ScanPlan plan;
  ScanGeometry geometry;
  bool leaves_chunks;
  std::string name() const {
    return "plan " + std::to_string(static_cast<int>(plan)) + " states " +
           std::to_string(geometry.states) + " leg " + std::to_string(geometry.leg) + " channels " +
           std::to_string(geometry.channels) + " warps " + std::to_string(geometry.warps) +
           (leaves_chunks ? " leaves chunks" : "");
  }
};

// Grows: states may, and time is not walked.
std::vector<Cut> cuts(std::int64_t time, bool grows = false) {
  std::vector<Cut> all;
  if (time == 1) all.push_back({ScanPlan::step, {}, false});
  for (const int states : {4, 8}) {
    if (grows) break;
    for (const std::int64_t leg : {0, 32, 96}) {
      ScanGeometry geometry;
      geometry.states = states;
      geometry.leg = leg;
      all.push_back({ScanPlan::sequential, geometry, true});
    }
  }
  for (const auto& [channels, warps] :
       {std::pair{8, 1}, {8, 3}, {16, 2}, {16, 5}, {32, 1}, {32, 4}, {32, 16}}) {
    ScanGeometry geometry;
    geometry.channels = channels;
    geometry.warps = warps;
    for (const bool leaves : {false, true}) all.push_back({ScanPlan::chunked, geometry, leaves});
  }
  return all;
}

// The state before each chunk, from the states after every step.
std::vector<Bounded> chunk_states(const ScanCase& c, const SequenceResult& result,
                                  const SelectiveScan& op) {
  const std::vector<double> initial = optional_values(op.initial_state);
  const std::int64_t state = c.channels * c.d_state;
  std::vector<Bounded> all;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    for (std::int64_t t = 0; t < c.time; t += chunk) {
      for (std::int64_t i = 0; i < state; ++i) {
        if (t > 0) {
          all.push_back(
              result.step_states[static_cast<std::size_t>((b * c.time + t - 1) * state + i)]);
        } else {
          all.push_back(
              {initial.empty() ? 0 : initial[static_cast<std::size_t>(b * state + i)], 0});
        }
      }
    }
  }
  return all;
}

// Everything that a scan can leave, by every cut. Plans that are not chunked agree to the bit, and
// so does a chunked one whether it leaves chunk states or not.
void expect_every_cut_matches(const ScanInputs& host, Device device, bool leaves_steps) {
  const ScanCase& c = host.shape;
  const SequenceResult expected = scan_reference(host.op());
  const std::vector<Bounded> expected_chunks = chunk_states(c, expected, host.op());
  const ScanInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  std::vector<unsigned char> same, not_leaving;
  for (const Cut& cut : cuts(c.time, c.grows())) {
    SCOPED_TRACE(c.name() + " " + cut.name());
    const Guarded y(inputs.y_shape(), c.dtype, device, c.aligned ? 8 : 3);
    const Guarded last(inputs.state_shape(), DType::f32, device);
    const Guarded steps(inputs.step_shape(), DType::f32, device);
    const Guarded chunks({c.batch, (c.time + chunk - 1) / chunk, c.channels, c.d_state}, DType::f32,
                         device);
    SelectiveScan op = inputs.op();
    op.y = y.view();
    op.final_state = last.view();
    if (leaves_steps) op.step_states = steps.view();
    if (cut.leaves_chunks) {
      op.chunk_states = chunks.view();
      op.chunk_steps = chunk;
    }
    cuda::run_scan(op, stream, cut.plan, cut.geometry);
    stream.synchronize();
    expect_within(y.view(), expected.y, "y");
    expect_within(last.view(), expected.final_state, "final state");
    if (leaves_steps) expect_within(steps.view(), expected.step_states, "step states");
    if (cut.leaves_chunks) expect_within(chunks.view(), expected_chunks, "chunk states");
    for (const Guarded* output : {&y, &last, &steps, &chunks}) output->expect_untouched("around");
    const std::vector<unsigned char> now = bits(y.view());
    if (cut.plan != ScanPlan::chunked) {
      if (same.empty()) same = now;
      EXPECT_EQ(now, same);
    } else if (!cut.leaves_chunks) {
      not_leaving = now;  // the next cut differs in that alone
    } else {
      EXPECT_EQ(now, not_leaving);
    }
    if (::testing::Test::HasFailure()) return;
  }
}
void expect_every_cut_matches(const ScanCase& c, Device device, bool leaves_steps,
                              std::uint64_t seed = 1) {
  expect_every_cut_matches(ScanInputs(c, seed), device, leaves_steps);
}

TEST_EACH(CudaScan, EveryCutForEveryStateSize, CudaDevice device, DType dtype) {
  for (const std::int64_t d_state : {1, 3, 4, 8, 9, 16, 17, 33, 65, 130, 256}) {
    for (const std::int64_t time : {0, 1, 17, 45}) {
      ScanCase c;
      c.dtype = dtype;
      c.d_state = d_state;
      c.time = time;
      c.channels = d_state > 64 ? 5 : 19;
      expect_every_cut_matches(c, device, false);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// Whole rows of 16-byte pieces take other kernels; B and C may be aligned to less.
TEST_EACH(CudaScan, EveryCutOfAlignedOperands, CudaDevice device, DType dtype) {
  for (const std::int64_t channels : {8, 24, 40, 136}) {
    for (const std::int64_t d_state : {2, 4, 16, 24}) {
      for (const std::int64_t time : {1, 16, 31, 129}) {
        ScanCase c;
        c.dtype = dtype;
        c.aligned = true;
        c.channels = channels;
        c.d_state = d_state;
        c.time = time;
        expect_every_cut_matches(c, device, false);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST_EACH(CudaScan, EveryCutWithEveryOption, CudaDevice device, DType dtype) {
  for (int options = 0; options < 64; ++options) {
    ScanCase c;
    c.dtype = dtype;
    c.aligned = options % 2 == 1;
    c.channels = 16;
    c.d_state = 7;
    c.time = 70;
    c.D = options & 2;
    c.z = options & 4;
    c.dt_bias = options & 8;
    c.initial = options & 16;
    c.reset = options & 32;
    expect_every_cut_matches(c, device, options % 3 == 0, static_cast<std::uint64_t>(options));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaScan, EveryCutOfEveryForm, CudaDevice device, DType dtype, ScanForm form) {
  for (const std::int64_t d_state : {5, 16, 20, 70}) {
    for (const std::int64_t time : {1, 17, 150}) {
      for (const bool aligned : {false, true}) {
        ScanCase c = case_of(form, dtype);
        c.channels = 40;
        c.d_state = d_state;
        c.time = time;
        c.aligned = aligned;
        c.reset = !aligned;
        expect_every_cut_matches(c, device, !aligned);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

// The kernel that takes four rows at a time begins with so many; states that may grow have none.
TEST_EACH(CudaScan, OneStepOfManyRows, CudaDevice device, ScanForm form) {
  for (const std::int64_t batch : {64, 67}) {
    ScanCase c = case_of(form, DType::bf16);
    c.batch = batch;
    c.time = 1;
    c.channels = 4104;
    c.aligned = true;
    const ScanInputs host(c);
    const SequenceResult expected = scan_reference(host.op());
    const ScanInputs inputs = host.to(device);
    Tensor y(inputs.y_shape(), c.dtype, device);
    Tensor last(inputs.state_shape(), DType::f32, device);
    SelectiveScan op = inputs.op();
    op.y = y;
    op.final_state = last;
    run(op, default_stream(device));
    expect_within(y, expected.y, c.name() + " y");
    expect_within(last, expected.final_state, c.name() + " final state");
    if (::testing::Test::HasFailure()) return;
  }
}

// A ring goes round many times, and the last warp is not the one with the last step.
TEST_EACH(CudaScan, EveryCutOfALongSequence, CudaDevice device) {
  for (const bool reset : {false, true}) {
    ScanCase c;
    c.batch = 1;
    c.channels = 24;
    c.time = 2081;
    c.aligned = true;
    c.reset = reset;
    expect_every_cut_matches(c, device, false);
  }
}

TEST_EACH(CudaScan, EveryCutWithResetsInSomeTiles, CudaDevice device, DType dtype) {
  for (const std::int64_t d_state : {16, 20}) {
    for (const bool aligned : {false, true}) {
      for (const bool gate : {false, true}) {
        const ScanCase c = case_of_rare_resets(dtype, d_state, aligned, gate);
        ScanInputs host(c);
        host.reset = rare_resets(c);
        expect_every_cut_matches(host, device, !aligned && gate);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

// From a reset on, what the state held does not matter.
TEST_EACH(CudaScan, EveryCutSelectsAtAReset, CudaDevice device) {
  ScanCase c;
  c.batch = 1;
  c.time = 140;
  ScanInputs host(c);
  const Tensor bad =
      Tensor::from(std::vector<float>(static_cast<std::size_t>(c.channels * c.d_state),
                                      std::numeric_limits<float>::quiet_NaN()),
                   host.state_shape())
          .to(device);
  for (const std::int64_t at : {0, 1, 15, 16, 47, 48, 63, 64, 100}) {
    host.reset = resets_at({at}, c.batch, c.time);
    const SequenceResult expected = scan_reference(host.op());
    const std::vector<Bounded> after(expected.y.begin() + at * c.channels, expected.y.end());
    const ScanInputs inputs = host.to(device);
    for (const Cut& cut : cuts(c.time)) {
      SCOPED_TRACE("reset at " + std::to_string(at) + " " + cut.name());
      Tensor y(inputs.y_shape(), c.dtype, device);
      const Guarded last(inputs.state_shape(), DType::f32, device);
      const Guarded chunks({1, (c.time + chunk - 1) / chunk, c.channels, c.d_state}, DType::f32,
                           device);
      SelectiveScan op = inputs.op();
      op.initial_state = bad;
      op.final_state = last.view();
      op.y = y;
      if (cut.leaves_chunks) {
        op.chunk_states = chunks.view();
        op.chunk_steps = chunk;
      }
      Stream& stream = default_stream(device);
      cuda::run_scan(op, stream, cut.plan, cut.geometry);
      stream.synchronize();
      expect_within(y.view().steps(at, c.time - at), after, "y");
      expect_within(last.view(), expected.final_state, "final state");
    }
  }
}

TEST(CudaScan, ChoosesByShape) {
  const cuda::Limits h200{227 << 10, 132, 90, true};
  const auto chosen = [&](std::int64_t batch, std::int64_t channels, std::int64_t time) {
    SelectiveScan op;  // plan() looks at shapes alone
    const Tensor x({batch, time, channels}, DType::bf16), A_log({channels, 16}, DType::f32);
    op.x = x;
    op.A_log = A_log;
    return cuda::plan(op, h200);
  };
  EXPECT_EQ(chosen(8, 1536, 1), ScanPlan::step);
  EXPECT_EQ(chosen(1, 1536, 100), ScanPlan::sequential);
  EXPECT_EQ(chosen(1, 1536, 512), ScanPlan::chunked);
  EXPECT_EQ(chosen(8, 5120, 128), ScanPlan::sequential);
}

// The narrow rings make products of decays, which may be infinite; a walk has one form only.
TEST(CudaScan, StatesThatMayGrowGoRoundTheWidestRing) {
  const cuda::Limits h200{227 << 10, 132, 90, true};
  const Tensor x({1, 512, 1536}, DType::bf16), A({1536, 16}, DType::f32);
  const auto channels = [&](bool is_log, bool softplus) {
    SelectiveScan op;  // geometry() looks at shapes alone
    op.x = x;
    (is_log ? op.A_log : op.A) = A;
    op.softplus = softplus;
    EXPECT_EQ(cuda::plan(op, h200), ScanPlan::chunked);
    SelectiveScanGrad grad;
    grad.x = x;
    grad.A_log = op.A_log;
    grad.A = op.A;
    grad.softplus = softplus;
    return std::pair(cuda::geometry(op, ScanPlan::chunked, h200).channels,
                     cuda::geometry(grad, h200).channels);
  };
  EXPECT_EQ(channels(true, true), std::pair(16, 16));
  EXPECT_EQ(channels(true, false), std::pair(32, 32));
  EXPECT_EQ(channels(false, true), std::pair(32, 32));
  EXPECT_EQ(channels(false, false), std::pair(32, 32));
  SelectiveScan op;
  const Tensor step({8, 1, 1536}, DType::bf16), steps({8, 2, 1536}, DType::bf16);
  op.A = A;
  op.x = step;
  EXPECT_EQ(cuda::plan(op, h200), ScanPlan::step);
  op.x = steps;
  EXPECT_EQ(cuda::plan(op, h200), ScanPlan::chunked);
}

TEST_EACH(CudaScan, AWalkRefusesStatesThatMayGrow, CudaDevice device) {
  ScanCase c;
  c.decays = ScanDecays::mixed;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Tensor y(inputs.y_shape(), DType::f32, device);
  SelectiveScan op = inputs.op();
  op.y = y;
  EXPECT_THROW(cuda::run_scan(op, default_stream(device), ScanPlan::sequential), ArgumentError);
}

// A prompt whose warps ask for more shared memory than some devices have, and a step.
TEST_EACH(CudaScanLimits, TakesPromptsAndSteps, LesserDevice lesser, CudaDevice device,
          DType dtype) {
  const cuda::LimitedDevices limited(lesser.limits);
  const cuda::Limits limits = cuda::limits(device, "test");
  EXPECT_LE(limits.shared_memory, lesser.limits.shared_memory);
  for (const std::int64_t d_state : {16, 64, 256}) {
    for (const std::int64_t time : {1, 100, 600}) {
      ScanCase c;
      c.batch = 1;
      c.dtype = dtype;
      c.aligned = true;
      c.channels = 72;
      c.d_state = d_state;
      c.time = time;
      SCOPED_TRACE(c.name());
      const ScanInputs host(c);
      const SequenceResult expected = scan_reference(host.op());
      const ScanInputs inputs = host.to(device);
      const Guarded y(inputs.y_shape(), dtype, device, 8);
      const Guarded last(inputs.state_shape(), DType::f32, device);
      SelectiveScan op = inputs.op();
      op.y = y.view();
      op.final_state = last.view();
      const ScanPlan chosen = cuda::plan(op, limits);
      // Blocks of the most states need 133 KiB to walk in f32, and a bit over 99 in 16 bits.
      const int most_states_bytes = dtype == DType::f32 ? 135712 : 101392;
      const bool walks = d_state <= 128 || limits.shared_memory >= most_states_bytes;
      EXPECT_EQ(chosen, time == 1              ? ScanPlan::step
                        : time == 100 && walks ? ScanPlan::sequential
                                               : ScanPlan::chunked);
      Stream& stream = default_stream(device);
      run(op, stream);
      stream.synchronize();
      expect_within(y.view(), expected.y, "y");
      expect_within(last.view(), expected.final_state, "final state");
      y.expect_untouched("around y");
      last.expect_untouched("around the final state");
      if (::testing::Test::HasFailure()) return;
    }
  }
}
TEST_EACH(CudaScanLimits, EveryCut, LesserDevice lesser, CudaDevice device, DType dtype) {
  const cuda::LimitedDevices limited(lesser.limits);
  ScanCase c = case_of_rare_resets(dtype, 16, true, true);
  ScanInputs host(c);
  host.reset = rare_resets(c);
  expect_every_cut_matches(host, device, false);
  if (::testing::Test::HasFailure()) return;
}

TEST_EACH(CudaScanLimits, EveryForm, LesserDevice lesser, CudaDevice device, ScanForm form) {
  const cuda::LimitedDevices limited(lesser.limits);
  for (const std::int64_t d_state : {16, 64}) {
    ScanCase c = case_of(form, DType::f32);
    c.batch = 1;
    c.channels = 72;
    c.d_state = d_state;
    c.time = 600;
    expect_every_cut_matches(c, device, false);
    if (::testing::Test::HasFailure()) return;
  }
}

// The widest ring of so many states needs a block of 107 KiB.
TEST_EACH(CudaScanLimits, StatesThatMayGrowAreRefusedWhereTheWidestRingHasNoRoom,
          CudaDevice device) {
  cuda::Limits small = cuda::limits(device, "test");
  small.shared_memory = 99 << 10;
  const cuda::LimitedDevices limited(small);
  ScanCase c;
  c.decays = ScanDecays::mixed;
  c.batch = 1;
  c.d_state = 256;
  c.time = 40;
  const ScanInputs inputs = ScanInputs(c).to(device);
  const Guarded y(inputs.y_shape(), c.dtype, device);
  SelectiveScan op = inputs.op();
  op.y = y.view();
  EXPECT_THROW(run(op, default_stream(device)), DeviceError);
  y.expect_untouched("refused");
  for (const double value : values(y.view())) ASSERT_TRUE(std::isnan(value));
}

TEST_EACH(CudaScan, OneStepPlanRefusesMore, CudaDevice device) {
  const ScanInputs inputs = ScanInputs(ScanCase{}).to(device);
  Tensor y(inputs.y_shape(), DType::f32, device);
  SelectiveScan op = inputs.op();
  op.y = y;
  EXPECT_THROW(cuda::run_scan(op, default_stream(device), ScanPlan::step), ArgumentError);
}

TEST_EACH(CudaScan, RefusesStepsThatItCannotCountTheBytesBetween, CudaDevice device) {
  ScanCase c;
  c.batch = 1;
  c.time = 2;
  const ScanInputs inputs = ScanInputs(c).to(device);
  Tensor y(inputs.y_shape(), DType::f32, device);
  SelectiveScan op = inputs.op();
  op.y = TensorView(y.data<float>(), {1, 2, std::int64_t{1} << 30}, DType::f32, device)
             .columns(0, c.channels);  // refused before it is written to
  expect_error<ArgumentError>(
      "selective_scan: bytes between steps: expected less than 4 GiB, got 4294967296",
      [&] { run(op, default_stream(device)); });
}

}  // namespace
}  // namespace mamba::testing
#endif
