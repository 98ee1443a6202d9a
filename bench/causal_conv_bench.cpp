// CausalConv on the CPU: first right (a few channels against a plain loop in double), then timed.
// Counter: nanoseconds per channel and token.
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

// As in a layer: x is the first half of a projection.
struct Operands {
  Tensor xz, weight, bias, state, y;

  Operands(const Shape& shape, std::int64_t width, DType dtype)
      : xz(random_tensor({shape[0], shape[1], 2 * shape[2]}, dtype)),
        weight(random_tensor({shape[2], width}, DType::f32)),
        bias(random_tensor({shape[2]}, DType::f32)),
        state(Tensor::zeros({shape[0], shape[2], width - 1}, dtype)),
        y(shape, dtype) {}

  mamba::CausalConv op() {
    mamba::CausalConv conv;
    conv.x = xz.view().columns(0, y.dim(2));
    conv.weight = weight;
    conv.bias = bias;
    conv.initial_state = state;
    conv.final_state = state;
    conv.y = y;
    return conv;
  }
};

// The largest difference from a plain loop over one channel.
double error_of_channel(const Operands& operands, std::int64_t b, std::int64_t c) {
  const Tensor xz = operands.xz.to(mamba::Device::cpu(), DType::f32);
  const Tensor y = operands.y.to(mamba::Device::cpu(), DType::f32);
  const std::int64_t time = y.dim(1), channels = y.dim(2), width = operands.weight.dim(1);
  double worst = 0;
  for (std::int64_t t = 0; t < time; ++t) {
    double sum = operands.bias.data<float>()[c];
    for (std::int64_t k = std::max<std::int64_t>(0, width - 1 - t); k < width; ++k) {
      const std::int64_t token = b * time + t - (width - 1) + k;
      sum += static_cast<double>(operands.weight.data<float>()[c * width + k]) *
             xz.data<float>()[token * 2 * channels + c];
    }
    const double expected = sum / (1 + std::exp(-sum));
    worst = std::max(worst, std::abs(y.data<float>()[(b * time + t) * channels + c] - expected));
  }
  return worst;
}

void causal_conv(benchmark::State& state, const Shape& shape, std::int64_t width, DType dtype,
                 int threads, std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  Operands operands(shape, width, dtype);
  mamba::Stream stream(mamba::Device::cpu(), threads);
  const mamba::CausalConv conv = operands.op();
  run(conv, stream);
  const double allowed = dtype == DType::f32 ? 1e-5 : 2e-2;
  for (std::int64_t c : {std::int64_t{0}, shape[2] / 2 + 1, shape[2] - 1}) {
    if (!(error_of_channel(operands, shape[0] - 1, c) < allowed)) {
      state.SkipWithError("wrong result");
    }
  }
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) run(conv, stream);
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
          const std::string name = "causal_conv/" + shape.to_string() + "/width:4/" +
                                   name_of(dtype) + "/" + target.name +
                                   "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(name.c_str(), causal_conv, shape, 4, dtype, threads,
                                       target.mask)
              ->UseRealTime();
        }
      }
    }
  }
  benchmark::RegisterBenchmark("causal_conv/[1, 512, 1536]/width:6/f32/best/threads:1", causal_conv,
                               Shape{1, 512, 1536}, 6, DType::f32, 1, 0)
      ->UseRealTime();
  return true;
}();

}  // namespace
