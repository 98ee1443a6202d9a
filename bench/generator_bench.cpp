// What costs nothing worth measuring: to make a generator, and a call with nothing to do.
#include <benchmark/benchmark.h>

#include <mamba/generator.hpp>

#include <chrono>
#include <vector>

namespace {

using namespace mamba;

// A thousand at a time, with a stream each, of a small model: their memory is not what is measured.
void generators_made(benchmark::State& bench) {
  LanguageModelConfig config;
  config.layer.d_model = 64;
  config.n_layer = 2;
  config.vocab_size = 256;
  const LanguageModel model = LanguageModel::random(config, 1);
  constexpr int count = 1000;
  Generator expected(model);
  expected.read({1, 2, 3});
  const std::int32_t token = expected.next();
  for (auto _ : bench) {
    std::vector<Generator> generators;
    generators.reserve(count);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < count; ++i) generators.emplace_back(model);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    bench.SetIterationTime(elapsed.count());
    bench.counters["us_each"] = elapsed.count() / count * 1e6;
    generators.back().read({1, 2, 3});
    if (generators.back().next() != token) bench.SkipWithError("another token");
  }
}

void call_of_time_0(benchmark::State& bench) {
  LayerConfig config;
  config.d_model = 768;
  const Layer layer = Layer::random(config, 1);
  MambaState state = layer.make_state(1);
  const Tensor x({1, 0, 768}, DType::f32);
  Tensor y({1, 0, 768}, DType::f32);
  Stream stream(Device::cpu(), 2);
  for (auto _ : bench) layer.forward(x, state, y, stream);
}

BENCHMARK(generators_made)
    ->Name("generator/1000_made")
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);
BENCHMARK(call_of_time_0)->Name("layer/time_0")->Unit(benchmark::kNanosecond);

}  // namespace
