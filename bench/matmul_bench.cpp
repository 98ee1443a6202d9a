// The matrices of a 130m-shaped Mamba: one decode step against a plain read of the same bytes, and
// a prompt of 512 tokens. Results are checked before anything is timed.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include <mamba/ops.hpp>

#include "plain_read.hpp"
#include "random_tensor.hpp"

namespace {

using namespace mamba;
using mamba::bench::random_tensor;

struct Size {
  std::int64_t out, in;
};
// Printed before the results.
const bool kernels_are_said = [] {
  benchmark::AddCustomContext("kernels", cpu_kernels());
  return true;
}();
constexpr int layers = 24;
constexpr Size layer_sizes[] = {{3072, 768}, {80, 1536}, {1536, 48}, {768, 1536}};
constexpr Size head_size{50280, 768};

struct Model {
  std::vector<Tensor> weights;  // layer by layer, the head last
  explicit Model(DType dtype) {
    for (int i = 0; i < layers; ++i) {
      for (const Size& size : layer_sizes)
        weights.push_back(random_tensor({size.out, size.in}, dtype));
    }
    weights.push_back(random_tensor({head_size.out, head_size.in}, dtype));
  }
  double bytes() const {
    double sum = 0;
    for (const Tensor& weight : weights) sum += static_cast<double>(weight.bytes());
    return sum;
  }
};

const Model& model(DType dtype) {
  static std::unique_ptr<Model> models[4];
  auto& one = models[static_cast<std::size_t>(dtype)];
  if (!one) one = std::make_unique<Model>(dtype);
  return *one;
}

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void plain_read(const Model& model, int threads) {
  bench::plain_read({model.weights.begin(), model.weights.end()}, threads);
}

// All matrices once, for `rows` rows; the head for its last row alone, as a prompt needs it.
struct Pass {
  const Model& model;
  Stream& stream;
  Tensor x, y, logits;

  Pass(const Model& m, Stream& s, std::int64_t rows, DType dtype)
      : model(m),
        stream(s),
        x(random_tensor({rows, 1536}, dtype)),
        y({rows, 3072}, dtype),
        logits({1, head_size.out}, DType::f32) {}

  void multiply(const Tensor& weight, ConstTensorView from, TensorView to) {
    Matmul op;
    op.x = from.columns(0, weight.dim(1));
    op.weight = weight;
    op.y = to.columns(0, weight.dim(0));
    run(op, stream);
  }
  void run_all() {
    for (std::size_t i = 0; i + 1 < model.weights.size(); ++i) multiply(model.weights[i], x, y);
    multiply(model.weights.back(), x.view().rows(x.dim(0) - 1, 1), logits);
  }
  void run_one(std::size_t kind) {
    for (std::size_t i = kind; i + 1 < model.weights.size(); i += 4)
      multiply(model.weights[i], x, y);
  }

  // The last layer's matrix and the head, at a few places, in double.
  bool correct() {
    run_all();
    const Tensor xs = x.to(Device::cpu(), DType::f32);
    const Tensor ys = y.to(Device::cpu(), DType::f32);
    const auto check = [&](const Tensor& weight, const Tensor& result, std::int64_t row,
                           std::int64_t result_row, double unit) {
      const Tensor w = weight.to(Device::cpu(), DType::f32);
      for (std::int64_t o = 0; o < weight.dim(0); o += 61) {
        double sum = 0, magnitude = 0;
        for (std::int64_t i = 0; i < weight.dim(1); ++i) {
          const double product = static_cast<double>(xs.data<float>()[row * 1536 + i]) *
                                 static_cast<double>(w.data<float>()[o * weight.dim(1) + i]);
          sum += product;
          magnitude += std::abs(product);
        }
        const double got =
            static_cast<double>(result.data<float>()[result_row * result.dim(1) + o]);
        const double bound = static_cast<double>(weight.dim(1)) * 0x1p-24 * magnitude;
        if (!(std::abs(got - sum) <= bound + unit * std::abs(sum))) return false;
      }
      return true;
    };
    const double unit = x.dtype() == DType::f32 ? 0x1p-23 : 0x1p-7;
    const std::int64_t last = x.dim(0) - 1;
    return check(model.weights[model.weights.size() - 2], ys, last, last, unit) &&
           check(model.weights.back(), logits, last, 0, 0x1p-23);
  }
};

void decode(benchmark::State& state, DType dtype) {
  const auto threads = static_cast<int>(state.range(0));
  Stream stream(Device::cpu(), threads);
  Pass pass(model(dtype), stream, 1, dtype);
  if (!pass.correct()) return state.SkipWithError("wrong result");
  // The two are measured in turn and the fastest of each counts: on a shared machine the bandwidth
  // changes from second to second.
  double read = HUGE_VAL, multiply = HUGE_VAL;
  for (auto _ : state) {
    const double start = seconds();
    plain_read(pass.model, threads);
    const double middle = seconds();
    pass.run_all();
    const double end = seconds();
    read = std::min(read, middle - start);
    multiply = std::min(multiply, end - middle);
    state.SetIterationTime(end - middle);
  }
  const double bytes = pass.model.bytes();
  state.counters["best_ms"] = multiply * 1e3;
  state.counters["GB/s"] = bytes / multiply * 1e-9;
  state.counters["read_GB/s"] = bytes / read * 1e-9;
  state.counters["of_read"] = read / multiply;
}
BENCHMARK_CAPTURE(decode, f32, DType::f32)
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode, bf16, DType::bf16)
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode, f16, DType::f16)
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

// Rows share one read of the weights.
void decode_rows(benchmark::State& state, DType dtype) {
  Stream stream(Device::cpu(), 2);
  Pass pass(model(dtype), stream, state.range(0), dtype);
  if (!pass.correct()) return state.SkipWithError("wrong result");
  for (auto _ : state) pass.run_all();
}
BENCHMARK_CAPTURE(decode_rows, f32, DType::f32)
    ->DenseRange(1, 9)
    ->Arg(16)
    ->Arg(64)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(decode_rows, bf16, DType::bf16)
    ->DenseRange(1, 9)
    ->Arg(16)
    ->Arg(64)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void prefill(benchmark::State& state, DType dtype) {
  constexpr std::int64_t tokens = 512;
  Stream stream(Device::cpu(), static_cast<int>(state.range(0)));
  Pass pass(model(dtype), stream, tokens, dtype);
  if (!pass.correct()) return state.SkipWithError("wrong result");
  for (auto _ : state) pass.run_all();
  state.counters["tok/s"] = benchmark::Counter(static_cast<double>(tokens * state.iterations()),
                                               benchmark::Counter::kIsRate);
}
BENCHMARK_CAPTURE(prefill, f32, DType::f32)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prefill, bf16, DType::bf16)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// The four matrices of a layer apart (24 of each): 0 in_proj, 1 x_proj, 2 dt_proj, 3 out_proj.
void prefill_one(benchmark::State& state) {
  constexpr std::int64_t tokens = 512;
  const auto kind = static_cast<std::size_t>(state.range(0));
  Stream stream(Device::cpu(), static_cast<int>(state.range(1)));
  Pass pass(model(DType::f32), stream, tokens, DType::f32);
  for (auto _ : state) pass.run_one(kind);
  const double flops = 2.0 * layers * tokens * static_cast<double>(layer_sizes[kind].out) *
                       static_cast<double>(layer_sizes[kind].in);
  state.counters["GFLOP/s"] = benchmark::Counter(
      flops * 1e-9 * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}
BENCHMARK(prefill_one)
    ->ArgsProduct({{0, 1, 2, 3}, {1, 2}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
