// SelectiveScan on the CPU: first right (a few channels against a plain loop in double), then
// timed. Counter: nanoseconds per channel and token.
#include <benchmark/benchmark.h>
#include <hwy/highway.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <mamba/ops.hpp>

#include "random_tensor.hpp"

namespace {

using mamba::DType;
using mamba::Shape;
using mamba::Tensor;
using mamba::bench::random_tensor;

constexpr std::int64_t d_state = 16;

// As in a layer: x and z are halves of one projection, dt, B and C are apart.
struct Operands {
  Tensor xz, dt, BC, A_log, D, dt_bias, state, y;

  Operands(std::int64_t batch, std::int64_t time, std::int64_t channels, DType dtype)
      : xz(random_tensor({batch, time, 2 * channels}, dtype, -2, 2)),
        dt(random_tensor({batch, time, channels}, dtype, -1, 1)),
        BC(random_tensor({batch, time, 2 * d_state}, dtype, -1, 1)),
        A_log(random_tensor({channels, d_state}, DType::f32, 0, 2.8f)),
        D(random_tensor({channels}, DType::f32, 0, 1)),
        dt_bias(random_tensor({channels}, DType::f32, -6, -2)),
        state(Tensor::zeros({batch, channels, d_state}, DType::f32)),
        y({batch, time, channels}, dtype) {}

  mamba::SelectiveScan op() {
    mamba::SelectiveScan scan;
    scan.x = xz.view().columns(0, y.dim(2));
    scan.z = xz.view().columns(y.dim(2), y.dim(2));
    scan.dt = dt;
    scan.B = BC.view().columns(0, d_state);
    scan.C = BC.view().columns(d_state, d_state);
    scan.A_log = A_log;
    scan.D = D;
    scan.dt_bias = dt_bias;
    scan.initial_state = state;
    scan.final_state = state;
    scan.y = y;
    return scan;
  }
};

// The largest difference from a plain loop over one channel, as a fraction of the largest y.
double error_of_channel(const Operands& operands, std::int64_t b, std::int64_t c) {
  const auto f32 = [](const Tensor& t) { return t.to(mamba::Device::cpu(), DType::f32); };
  const Tensor xz = f32(operands.xz), dt = f32(operands.dt), BC = f32(operands.BC);
  const Tensor y = f32(operands.y);
  const std::int64_t time = y.dim(1), channels = y.dim(2);
  std::vector<double> h(d_state);
  double worst = 0, largest = 0;
  for (std::int64_t t = 0; t < time; ++t) {
    const std::int64_t token = b * time + t;
    const float* bc = BC.data<float>() + token * 2 * d_state;
    const double x = xz.data<float>()[token * 2 * channels + c];
    const double z = xz.data<float>()[token * 2 * channels + channels + c];
    const double v = dt.data<float>()[token * channels + c] + operands.dt_bias.data<float>()[c];
    const double delta = std::log1p(std::exp(v));
    double sum = operands.D.data<float>()[c] * x;
    for (std::size_t n = 0; n < d_state; ++n) {
      const auto i = static_cast<std::int64_t>(n);
      const double A = -std::exp(operands.A_log.data<float>()[c * d_state + i]);
      h[n] = std::exp(delta * A) * h[n] + delta * bc[i] * x;
      sum += bc[d_state + i] * h[n];
    }
    const double expected = sum * z / (1 + std::exp(-z));
    worst = std::max(worst, std::abs(y.data<float>()[token * channels + c] - expected));
    largest = std::max(largest, std::abs(expected));
  }
  return worst / largest;
}

void selective_scan(benchmark::State& state, const Shape& shape, DType dtype, int threads,
                    std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  Operands operands(shape[0], shape[1], shape[2], dtype);
  mamba::Stream stream(mamba::Device::cpu(), threads);
  const mamba::SelectiveScan scan = operands.op();
  run(scan, stream);
  const double allowed = dtype == DType::f32 ? 1e-5 : 4e-3;
  for (std::int64_t c : {std::int64_t{0}, shape[2] / 2 + 1, shape[2] - 1}) {
    if (!(error_of_channel(operands, shape[0] - 1, c) < allowed)) {
      state.SkipWithError("wrong result");
    }
  }
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) run(scan, stream);
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * shape.count());
  hwy::SetSupportedTargetsForTest(0);
}

const bool registered = [] {
  struct Target {
    const char* name;
    std::int64_t mask;
  };
  std::vector<Target> targets = {{"best", 0}};
#if HWY_ARCH_X86
  targets.push_back({"AVX2", HWY_AVX2 | HWY_STATIC_TARGET});
#endif
  for (const Target& target : targets) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      for (const Shape& shape :
           {Shape{1, 512, 1536}, Shape{8, 256, 1536}, Shape{64, 256, 128}, Shape{1, 1, 1536}}) {
        for (int threads : {1, 2}) {
          const std::string name = "selective_scan/" + shape.to_string() + "/" + name_of(dtype) +
                                   "/" + target.name + "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), selective_scan, shape, dtype, threads,
                                       target.mask)
              ->UseRealTime();
        }
      }
    }
  }
  return true;
}();

}  // namespace
