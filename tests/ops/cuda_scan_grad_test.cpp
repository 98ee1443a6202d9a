// How the gradient of a selective scan is cut on CUDA: every geometry gives the same. What holds
// for the chosen one is in selective_scan_grad_test.cpp, on every device.
#ifdef MAMBA_HAS_CUDA  // set by the build: the kernels are in the library only then
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "each.hpp"
#include "kernels/scan/selective_scan.hpp"
#include "ops/limited_devices.hpp"
#include "ops/scan_grad_inputs.hpp"

namespace mamba::testing {
namespace {

using cuda::ScanGeometry;

std::vector<ScanGeometry> geometries() {
  std::vector<ScanGeometry> all;
  for (const auto& [channels, warps] :
       {std::pair{16, 1}, {16, 3}, {16, 8}, {32, 1}, {32, 2}, {32, 8}, {32, 12}}) {
    ScanGeometry geometry;
    geometry.channels = channels;
    geometry.warps = warps;
    all.push_back(geometry);
  }
  return all;
}

std::string name_of(const ScanGeometry& geometry) {
  return "channels " + std::to_string(geometry.channels) + " warps " +
         std::to_string(geometry.warps);
}

void run_cut(const GradInputs& inputs, const Gradients& out, Stream& stream,
             const ScanGeometry& geometry) {
  run_both(inputs, out, stream, 0,
           [&](const SelectiveScanGrad& op, Stream& on) { cuda::run_scan_grad(op, on, geometry); });
}

void expect_every_cut_matches(const GradInputs& host, Device device) {
  const ScanGradResult expected = reference(host);
  const GradInputs inputs = host.to(device);
  for (const ScanGeometry& geometry : geometries()) {
    const Gradients out(host.shape(), device);
    run_cut(inputs, out, default_stream(device), geometry);
    expect_gradients(out, expected, host.shape(), host.shape().name() + " " + name_of(geometry));
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaScanGrad, EveryCutWithEveryOption, CudaDevice device, DType dtype) {
  for (int options = 0; options < 32; ++options) {
    ScanCase c;
    c.dtype = dtype;
    c.aligned = options & 1;
    c.channels = 40;
    c.d_state = options % 3 == 0 ? 16 : 19;
    c.time = 150;
    c.D = options & 2;
    c.z = options & 4;
    c.initial = options & 8;
    c.reset = options & 16;
    expect_every_cut_matches(GradInputs(c, static_cast<std::uint64_t>(options)), device);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaScanGrad, EveryCutOfEveryForm, CudaDevice device, DType dtype, ScanForm form) {
  for (const bool aligned : {false, true}) {
    ScanCase c = case_of(form, dtype);
    c.aligned = aligned;
    c.channels = 40;
    c.d_state = aligned ? 16 : 19;
    c.time = 150;
    c.reset = !aligned;
    expect_every_cut_matches(GradInputs(c), device);
    if (::testing::Test::HasFailure()) return;
  }
}

TEST_EACH(CudaScanGrad, EveryCutWithResetsInSomeTiles, CudaDevice device, DType dtype) {
  for (const std::int64_t d_state : {16, 20}) {
    for (const bool aligned : {false, true}) {
      const ScanCase c = case_of_rare_resets(dtype, d_state, aligned, !aligned);
      GradInputs host(c);
      host.scan.reset = rare_resets(c);
      expect_every_cut_matches(host, device);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// NaN behind a reset does not get before it.
TEST_EACH(CudaScanGrad, NothingCrossesAReset, CudaDevice device) {
  ScanCase c;
  c.batch = 1;
  c.time = 140;
  c.aligned = true;
  c.channels = 16;
  for (const std::int64_t at : {1, 15, 16, 47, 48, 63, 64, 100}) {
    GradInputs host(c);
    host.scan.reset = resets_at({at}, c.batch, c.time);
    const ScanGradResult expected = reference(host);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t i = at * c.channels; i < host.dy.count(); ++i) {
      host.dy.data<float>()[i] = nan;
    }
    for (std::int64_t i = 0; i < host.dfinal.count(); ++i) host.dfinal.data<float>()[i] = nan;
    const GradInputs inputs = host.to(device);
    for (const ScanGeometry& geometry : geometries()) {
      SCOPED_TRACE("reset at " + std::to_string(at) + " " + name_of(geometry));
      const Gradients out(c, device);
      run_cut(inputs, out, default_stream(device), geometry);
      const auto before = [&](const std::vector<Bounded>& all, std::int64_t columns) {
        return std::vector<Bounded>(all.begin(), all.begin() + at * columns);
      };
      expect_within(out.dx.view().steps(0, at), before(expected.dx, c.channels), "dx");
      expect_within(out.ddt.view().steps(0, at), before(expected.ddt, c.channels), "ddt");
      expect_within(out.dB.view().steps(0, at), before(expected.dB, c.d_state), "dB");
      expect_within(out.dinitial.view(), expected.dinitial, "dinitial");
    }
  }
}

TEST_EACH(CudaScanGradLimits, TakesPromptsByEveryCut, LesserDevice lesser, CudaDevice device,
          DType dtype) {
  const cuda::LimitedDevices limited(lesser.limits);
  for (const std::int64_t d_state : {16, 64, 200}) {
    ScanCase c;
    c.batch = 1;
    c.dtype = dtype;
    c.aligned = true;
    c.channels = 40;
    c.d_state = d_state;
    c.time = 600;
    SCOPED_TRACE(c.name());
    const GradInputs host(c);
    const ScanGradResult expected = reference(host);
    const GradInputs inputs = host.to(device);
    const Gradients out(c, device);
    run_both(inputs, out, default_stream(device));
    expect_gradients(out, expected, c, "as chosen");
    if (d_state > 64) continue;
    for (const ScanGeometry& geometry : geometries()) {
      const Gradients cut(c, device);
      run_cut(inputs, cut, default_stream(device), geometry);
      expect_gradients(cut, expected, c, name_of(geometry));
    }
    if (::testing::Test::HasFailure()) return;
  }
}

// Fewer states than a ring has warps: each of them waits for the one before it.
TEST_EACH(CudaScanGrad, EveryCutWithFewStates, CudaDevice device, DType dtype) {
  for (const std::int64_t d_state : {1, 3}) {
    ScanCase c;
    c.dtype = dtype;
    c.channels = 40;
    c.d_state = d_state;
    c.time = 250;
    expect_every_cut_matches(GradInputs(c), device);
  }
}

// As many blocks share a multiprocessor as its memory has room for.
TEST(CudaScanGrad, IsCutByShapeAndSharedMemory) {
  const auto cut = [](std::int64_t batch, std::int64_t channels, std::int64_t d_state,
                      DType dtype) {
    SelectiveScanGrad op;  // geometry() looks at shapes alone
    const Tensor x({batch, 2048, channels}, dtype), A_log({channels, d_state}, DType::f32);
    op.x = x;
    op.A_log = A_log;
    const ScanGeometry chosen = cuda::geometry(op, cuda::Limits{227 << 10, 132, 90, true});
    return std::pair(chosen.channels, chosen.warps);
  };
  EXPECT_EQ(cut(8, 1536, 16, DType::bf16), std::pair(32, 4));
  EXPECT_EQ(cut(8, 5120, 16, DType::bf16), std::pair(32, 6));
  EXPECT_EQ(cut(1, 1536, 16, DType::bf16), std::pair(16, 8));
  EXPECT_EQ(cut(64, 128, 16, DType::f32), std::pair(32, 4));
  EXPECT_EQ(cut(8, 5120, 32, DType::bf16), std::pair(16, 4)) << "of 32 channels 9 warps would fit";
}

// One warp of the most states in f32 needs 98.4 KiB.
TEST_EACH(CudaScanGrad, WhatFitsOnNoMultiprocessorIsNamedAndTheDeviceStillWorks,
          CudaDevice device) {
  ScanCase c;
  c.batch = 1;
  c.channels = 16;
  c.d_state = 256;
  c.time = 40;
  const GradInputs host(c);
  const ScanGradResult expected = reference(host);
  const GradInputs inputs = host.to(device);
  Stream& stream = default_stream(device);
  {
    cuda::Limits small = cuda::limits(device, "test");
    small.shared_memory = 98 << 10;
    const cuda::LimitedDevices limited(small);
    const Gradients out(c, device);
    expect_error<DeviceError>(
        "selective_scan_grad: shared memory: expected at most 100352 bytes of a block on " +
            device.name() + ", got 100752",
        [&] { run_both(inputs, out, stream); });
    out.expect_untouched("refused");
  }
  const Gradients out(c, device);
  run_both(inputs, out, stream);
  expect_gradients(out, expected, c, "with all of the device");
}

}  // namespace
}  // namespace mamba::testing
#endif
