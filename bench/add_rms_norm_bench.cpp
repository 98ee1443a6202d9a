// The residual norm of a 130m-shaped Mamba (768 channels), checked before it is timed.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <random>

#include <mamba/ops.hpp>

namespace {

using namespace mamba;

bool correct(const AddRmsNorm& op, const float* before, const float* x, const float* y) {
  const std::int64_t channels = op.y.dim(1);
  double squares = 0;
  const auto sum = [&](std::int64_t i) {
    return static_cast<double>(before[i]) + static_cast<double>(x[i]);
  };
  for (std::int64_t i = 0; i < channels; ++i) squares += sum(i) * sum(i);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(channels) + 1e-5);
  const double unit = op.y.dtype() == DType::f32 ? 0x1p-14 : 0x1p-7;
  for (std::int64_t i = 0; i < channels; ++i) {
    const double expected = sum(i) * scale;
    if (!(std::abs(static_cast<double>(y[i]) - expected) <= unit * std::abs(expected)))
      return false;
  }
  return true;
}

void add_rms_norm(benchmark::State& state, DType dtype) {
  constexpr std::int64_t channels = 768;
  const std::int64_t rows = state.range(0);
  Stream stream(Device::cpu(), static_cast<int>(state.range(1)));
  Tensor residual({rows, channels}, DType::f32), weight({channels}, DType::f32);
  Tensor exact({rows, channels}, DType::f32), y({rows, channels}, dtype);
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < residual.count(); ++i) {
    residual.data<float>()[i] = normal(engine);
    exact.data<float>()[i] = normal(engine);
  }
  for (std::int64_t i = 0; i < channels; ++i) weight.data<float>()[i] = 1;
  const Tensor x = exact.to(Device::cpu(), dtype);
  const Tensor before = residual.clone();
  AddRmsNorm op;
  op.x = x;
  op.residual = residual;
  op.weight = weight;
  op.y = y;
  run(op, stream);
  if (!correct(op, before.data<float>(), x.to(Device::cpu(), DType::f32).data<float>(),
               y.to(Device::cpu(), DType::f32).data<float>())) {
    return state.SkipWithError("wrong result");
  }
  zero(residual, stream);  // repeated additions must not overflow: they start from zero
  for (auto _ : state) run(op, stream);
  state.counters["ns/value"] =
      benchmark::Counter(static_cast<double>(y.count() * state.iterations()) * 1e-9,
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK_CAPTURE(add_rms_norm, f32, DType::f32)
    ->ArgsProduct({{1, 8, 512}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(add_rms_norm, bf16, DType::bf16)
    ->ArgsProduct({{1, 8, 512}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
