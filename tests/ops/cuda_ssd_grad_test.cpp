// How SsdGrad is computed on CUDA: every plan, cut every way, is held against the reference. The
// forward run is the CPU's, so that nothing of CUDA's is needed to be right. What holds for the
// chosen plan is in ssd_grad_test.cpp, on every device.
#ifdef MAMBA_HAS_CUDA  // set by the build: the kernels are in the library only then
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "each.hpp"
#include "kernels/ssd_grad/ssd_grad.hpp"
#include "ops/limited_devices.hpp"
#include "ops/ssd_grad_inputs.hpp"

namespace mamba::testing {
namespace {

using cuda::SsdGradPlan;

// A plan and a dtype that it takes.
struct PlannedDType {
  SsdGradPlan plan;
  DType dtype;

  bool is_mma() const { return plan == SsdGradPlan::mma; }
  SsdCase of(SsdCase c) const {
    c.dtype = dtype;
    c.aligned = c.aligned || is_mma();
    return c;
  }
  // On tensor cores states, adjoints and what is decayed are factors in bf16, two of them in
  // dlog_a.
  SsdRounding rounding() const {
    SsdRounding rounds;
    rounds.chunk = host::ssd_chunk;
    if (is_mma()) {
      rounds.state_unit = roundoff(dtype);
      rounds.y_unit = 2 * roundoff(dtype);
    }
    return rounds;
  }
};

}  // namespace

template <>
struct Every<PlannedDType> {
  static std::vector<PlannedDType> all() {
    std::vector<PlannedDType> list;
    for (const DType dtype : storage_dtypes()) list.push_back({SsdGradPlan::plain, dtype});
    list.push_back({SsdGradPlan::mma, DType::bf16});
    return list;
  }
  static std::string name(const PlannedDType& planned) {
    return (planned.is_mma() ? "mma_" : "plain_") + std::string(name_of(planned.dtype));
  }
};

namespace {

SsdGradResult reference(const SsdGradInputs& inputs, const SsdRounding& rounding) {
  const SsdReference ssd(inputs.ssd.op(), rounding);
  const SsdLoss loss{values(inputs.dy_view()), optional_values(inputs.dfinal)};
  return SsdGradReference(ssd, loss).result();
}

// The gradient on the device, from the states that the CPU keeps.
void run_planned(const SsdGradInputs& host, const SsdGradients& out, Device device,
                 SsdGradPlan plan, std::int64_t chunk_steps = 256,
                 std::int64_t scratch_bytes = cuda::ssd_grad_scratch) {
  const SsdCase& c = host.shape();
  const std::int64_t chunks = (c.time + chunk_steps - 1) / chunk_steps;
  Tensor states({c.batch, chunks, c.channels(), c.d_state}, DType::f32);
  Tensor y(host.ssd.y_shape(), c.dtype);
  Ssd ssd = host.ssd.op();
  ssd.chunk_steps = chunk_steps;
  ssd.chunk_states = states;
  ssd.y = y;
  run(ssd, default_stream());
  const SsdGradInputs inputs = host.to(device);
  Tensor kept = states.to(device);
  Ssd moved = inputs.ssd.op();
  moved.chunk_steps = chunk_steps;
  moved.chunk_states = kept;
  SsdGrad op = grad_op(moved, out);
  op.dy = inputs.dy_view();
  op.dfinal_state = inputs.dfinal;
  Stream& stream = default_stream(device);
  cuda::run_ssd_grad(op, stream, plan, scratch_bytes);
  stream.synchronize();
}

void expect_matches(const SsdGradInputs& host, Device device, const PlannedDType& planned,
                    std::int64_t chunk_steps = 256,
                    std::int64_t scratch_bytes = cuda::ssd_grad_scratch) {
  const SsdCase& c = host.shape();
  const SsdGradients out(c, device);
  run_planned(host, out, device, planned.plan, chunk_steps, scratch_bytes);
  expect_gradients(out, reference(host, planned.rounding()), c,
                   c.name() + " kept every " + std::to_string(chunk_steps));
}

TEST_EACH(CudaSsdGrad, EveryPlanWithEveryOption, CudaDevice device, PlannedDType planned) {
  for (int options = 0; options < 32; ++options) {
    SsdCase c;
    c.time = 140;
    c.heads = 4;
    c.groups = options % 3 == 0 ? 2 : 1;
    c.D = options & 1;
    c.dt_bias = options & 2;
    c.initial = options & 4;
    c.reset = options & 8;
    c.softplus = options & 16;
    if (options % 5 == 0) {
      c.dt_low = 0.05f;
      c.dt_high = 0.6f;
    }
    expect_matches(SsdGradInputs(planned.of(c), static_cast<std::uint64_t>(options)), device,
                   planned, 128);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaSsdGrad, EverySize, CudaDevice device, PlannedDType planned) {
  for (const auto& [head_dim, d_state] :
       {std::pair{1, 1}, {8, 8}, {24, 40}, {64, 128}, {64, 64}, {80, 72}, {65, 130}, {256, 256}}) {
    if (planned.is_mma() && (head_dim % 8 != 0 || head_dim > 64)) continue;
    SsdCase c;
    c.batch = 1;
    c.time = 100;
    c.heads = 2;
    c.head_dim = head_dim;
    c.d_state = d_state;
    expect_matches(SsdGradInputs(planned.of(c)), device, planned);
    if (::testing::Test::HasFailure()) return;
  }
}

// States may be kept anywhere; chunks of the kernels begin anew at each of them.
TEST_EACH(CudaSsdGrad, EveryLengthBetweenKeptStates, CudaDevice device, PlannedDType planned) {
  for (const std::int64_t time : {1, 63, 64, 65, 300}) {
    for (const std::int64_t kept : {1, 7, 64, 100, 128, 1000}) {
      SsdCase c;
      c.time = time;
      c.batch = 1;
      c.heads = 3;
      expect_matches(SsdGradInputs(planned.of(c)), device, planned, kept);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// More heads of a group than a block takes: dB and dC are sums over blocks.
TEST_EACH(CudaSsdGrad, ManyHeadsOfAGroup, CudaDevice device, PlannedDType planned) {
  for (const std::int64_t heads : {17, 37}) {
    SsdCase c;
    c.time = 90;
    c.heads = heads;
    c.reset = true;
    expect_matches(SsdGradInputs(planned.of(c)), device, planned);
  }
}

// Rows that scratch has no room for come one after another, and change nothing.
TEST_EACH(CudaSsdGrad, RowByRowIsTheSame, CudaDevice device, PlannedDType planned) {
  SsdCase c;
  c.batch = 5;
  c.time = 200;
  c = planned.of(c);
  const SsdGradInputs host(c);
  const SsdGradients together(c, device), apart(c, device), again(c, device);
  run_planned(host, together, device, planned.plan);
  run_planned(host, again, device, planned.plan);
  run_planned(host, apart, device, planned.plan, 256, 1);
  expect_gradients(apart, reference(host, planned.rounding()), c, "row by row");
  for (std::size_t i = 0; i < together.all().size(); ++i) {
    const auto [name, output] = together.all()[i];
    EXPECT_EQ(bits(output->view()), bits(again.all()[i].second->view())) << name << " twice";
  }
  EXPECT_EQ(bits(together.dx.view()), bits(apart.dx.view()));
  EXPECT_EQ(bits(together.dinitial.view()), bits(apart.dinitial.view()));
}

// What lies on the far side of a reset is NaN, and stays there.
TEST_EACH(CudaSsdGrad, NothingCrossesAReset, CudaDevice device, PlannedDType planned) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t at : {1, 40, 64, 65, 140}) {
    for (const bool before : {false, true}) {
      SsdCase c;
      c.batch = 1;
      c.time = 150;
      c.head_dim = 16;
      c = planned.of(c);
      SsdGradInputs host(c);
      host.ssd.reset = resets_at({at}, 1, c.time);
      const SsdGradResult expected = reference(host, planned.rounding());
      const std::int64_t from = before ? 0 : at, count = before ? at : c.time - at;
      const std::int64_t first = before ? at : 0, rest = c.time - count;
      for (Tensor* tensor : {&host.dy, &host.ssd.xBC, &host.ssd.dt}) {
        const TensorView far = tensor->view().steps(from, count);
        copy(Random(1).tensor(far.shape(), c.dtype, [&] { return nan; }), far, default_stream());
      }
      Tensor& state = before ? host.ssd.initial : host.dfinal;
      state = Random(1).tensor(state.shape(), DType::f32, [&] { return nan; });
      const SsdGradients out(c, device);
      run_planned(host, out, device, planned.plan);
      const auto near = [&](const std::vector<Bounded>& all, std::int64_t each) {
        return std::vector<Bounded>(all.begin() + first * each,
                                    all.begin() + (first + rest) * each);
      };
      const std::string what =
          (before ? "before the reset at " : "behind the reset at ") + std::to_string(at);
      const auto steps = [&](const Guarded& output) { return output.view().steps(first, rest); };
      expect_within(steps(out.dx), near(expected.dx, c.channels()), what + ": dx");
      expect_within(steps(out.ddt), near(expected.ddt, c.heads), what + ": ddt");
      expect_within(steps(out.dB), near(expected.dB, c.d_state), what + ": dB");
      expect_within(steps(out.dC), near(expected.dC, c.d_state), what + ": dC");
      if (!before) expect_within(out.dinitial.view(), expected.dinitial, what + ": dinitial");
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(CudaSsdGradLimits, EveryPlanThatALesserDeviceHas, LesserDevice lesser, CudaDevice device,
          PlannedDType planned) {
  const cuda::LimitedDevices limited(lesser.limits);
  if (planned.is_mma() && cuda::limits(device, "test").shared_memory < (120 << 10)) return;
  SsdCase c;
  c.time = 130;
  c.heads = 6;
  c.head_dim = 64;
  c.d_state = 128;
  expect_matches(SsdGradInputs(planned.of(c)), device, planned);
}

// Blocks have one head after another, and one, two or four heads walk beside each other, as it
// takes to fill the device; of the last block of a group some may be missing.
TEST_EACH(CudaSsdGradLimits, HeadsOfABlock, CudaDevice device, PlannedDType planned) {
  for (const int multiprocessors : {1, 4, 100}) {
    cuda::Limits few = cuda::limits(device, "test");
    few.multiprocessors = multiprocessors;
    if (multiprocessors == 4) few.shared_memory = std::min(few.shared_memory, 163 << 10);
    const cuda::LimitedDevices limited(few);
    for (const std::int64_t heads : {1, 5, 20}) {
      SsdCase c;
      c.batch = 1;
      c.time = 200;
      c.heads = heads;
      c.head_dim = heads == 20 ? 16 : 64;
      c.d_state = heads == 20 ? 34 : 128;
      if (planned.is_mma() && heads == 20) c.d_state = 40;
      c.reset = heads == 5;
      expect_matches(SsdGradInputs(planned.of(c)), device, planned, 128);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_EACH(CudaSsdGrad, IsPlannedByShapeAndSharedMemory, CudaDevice device) {
  const auto planned = [&](SsdCase c, int shared_memory) {
    const SsdGradInputs inputs = SsdGradInputs(c).to(device);
    const SsdGradients out(c, device);
    SsdGrad op = grad_op(inputs.ssd.op(), out);
    op.dy = inputs.dy_view();
    return cuda::plan(op, cuda::Limits{shared_memory, 132, 90, true});
  };
  SsdCase c;
  c.dtype = DType::bf16;
  c.head_dim = 64;
  c.d_state = 128;
  EXPECT_EQ(planned(c, 227 << 10), SsdGradPlan::plain) << "rows begin anywhere";
  c.aligned = true;
  EXPECT_EQ(planned(c, 227 << 10), SsdGradPlan::mma);
  EXPECT_EQ(planned(c, 163 << 10), SsdGradPlan::mma);
  EXPECT_EQ(planned(c, 99 << 10), SsdGradPlan::plain);
  c.head_dim = 72;
  EXPECT_EQ(planned(c, 227 << 10), SsdGradPlan::plain);
  c.head_dim = 64;
  c.d_state = 136;
  EXPECT_EQ(planned(c, 227 << 10), SsdGradPlan::plain);
  c.d_state = 128;
  c.dtype = DType::f16;
  EXPECT_EQ(planned(c, 227 << 10), SsdGradPlan::plain);
}

TEST_EACH(CudaSsdGrad, APlanThatCannotDoItIsNamed, CudaDevice device) {
  const SsdCase c;
  const SsdGradInputs host(c);
  const SsdGradients out(c, device);
  expect_error<ArgumentError>("ssd_grad: plan: expected one that can do this, got mma",
                              [&] { run_planned(host, out, device, SsdGradPlan::mma); });
  out.expect_untouched("refused");
}

}  // namespace
}  // namespace mamba::testing
#endif
