// Ssd on the CPU: first right (some channels against a plain loop in double), then timed. Counter:
// nanoseconds per channel and token.
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

struct Sizes {
  std::int64_t batch, time, heads, groups;
  std::int64_t channels() const { return heads * head_dim; }
  static constexpr std::int64_t head_dim = 64, d_state = 128;
};

// As in a layer: x, B and C are columns of one convolved tensor.
struct Operands {
  Sizes sizes;
  Tensor xBC, dt, A_log, D, dt_bias, state, y;

  Operands(const Sizes& s, DType dtype)
      : sizes(s),
        xBC(random_tensor({s.batch, s.time, s.channels() + 2 * s.groups * s.d_state}, dtype)),
        dt(random_tensor({s.batch, s.time, s.heads}, dtype)),
        A_log(random_tensor({s.heads}, DType::f32, 0, 2.8f)),
        D(random_tensor({s.heads}, DType::f32, 0, 1)),
        dt_bias(random_tensor({s.heads}, DType::f32, -6, -2)),
        state(Tensor::zeros({s.batch, s.channels(), s.d_state}, DType::f32)),
        y({s.batch, s.time, s.channels()}, dtype) {}

  mamba::Ssd op() {
    const std::int64_t channels = sizes.channels(), width = sizes.groups * sizes.d_state;
    mamba::Ssd ssd;
    ssd.x = xBC.view().columns(0, channels);
    ssd.B = xBC.view().columns(channels, width);
    ssd.C = xBC.view().columns(channels + width, width);
    ssd.dt = dt;
    ssd.A_log = A_log;
    ssd.D = D;
    ssd.dt_bias = dt_bias;
    ssd.initial_state = state;
    ssd.final_state = state;
    ssd.y = y;
    ssd.groups = sizes.groups;
    return ssd;
  }
};

// The largest difference from a plain loop over one channel, as a fraction of the largest y.
double error_of_channel(const Operands& operands, std::int64_t b, std::int64_t c) {
  const auto f32 = [](const Tensor& t) { return t.to(mamba::Device::cpu(), DType::f32); };
  const Tensor xBC = f32(operands.xBC), dt = f32(operands.dt), y = f32(operands.y);
  const Sizes& s = operands.sizes;
  const std::int64_t head = c / s.head_dim, group = head / (s.heads / s.groups);
  std::vector<double> h(s.d_state);
  double worst = 0, largest = 0;
  for (std::int64_t t = 0; t < s.time; ++t) {
    const std::int64_t token = b * s.time + t;
    const float* row = xBC.data<float>() + token * xBC.dim(2);
    const float* B = row + s.channels() + group * s.d_state;
    const float* C = B + s.groups * s.d_state;
    const double v =
        dt.data<float>()[token * s.heads + head] + operands.dt_bias.data<float>()[head];
    const double delta = std::log1p(std::exp(v));
    const double decay = std::exp(-std::exp(operands.A_log.data<float>()[head]) * delta);
    double sum = operands.D.data<float>()[head] * row[c];
    for (std::int64_t n = 0; n < s.d_state; ++n) {
      double& state = h[static_cast<std::size_t>(n)];
      state = decay * state + delta * B[n] * row[c];
      sum += C[n] * state;
    }
    worst = std::max(worst, std::abs(y.data<float>()[token * s.channels() + c] - sum));
    largest = std::max(largest, std::abs(sum));
  }
  return worst / largest;
}

void ssd(benchmark::State& state, const Sizes& sizes, DType dtype, int threads,
         std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  Operands operands(sizes, dtype);
  mamba::Stream stream(mamba::Device::cpu(), threads);
  const mamba::Ssd op = operands.op();
  run(op, stream);
  const double allowed = dtype == DType::f32 ? 1e-5 : 4e-3;
  for (std::int64_t c : {std::int64_t{0}, sizes.channels() / 2 + 1, sizes.channels() - 1}) {
    if (!(error_of_channel(operands, sizes.batch - 1, c) < allowed)) {
      state.SkipWithError("wrong result");
    }
  }
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) run(op, stream);
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * operands.y.shape().count());
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
      for (const Sizes& s :
           {Sizes{1, 512, 24, 1}, Sizes{4, 128, 64, 8}, Sizes{1, 8, 24, 1}, Sizes{1, 1, 24, 1}}) {
        for (int threads : {1, 2}) {
          const std::string name = "ssd/" +
                                   Shape{s.batch, s.time, s.heads, s.head_dim}.to_string() +
                                   "/groups:" + std::to_string(s.groups) + "/" + name_of(dtype) +
                                   "/" + target.name + "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), ssd, s, dtype, threads, target.mask)
              ->UseRealTime();
        }
      }
    }
  }
  return true;
}();

}  // namespace
