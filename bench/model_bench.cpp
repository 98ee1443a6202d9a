// A model of 130m shape, end to end: what decoding reaches of the memory's speed, and how fast
// prompts go.
#include <benchmark/benchmark.h>

#include <mamba/language_model.hpp>

#include <chrono>
#include <thread>
#include <vector>

namespace {

using namespace mamba;

ModelConfig shape_130m() {
  ModelConfig config;
  config.layer.d_model = 768;
  config.n_layer = 24;
  config.vocab_size = 50280;
  return config;
}

const LanguageModel& model_130m(DType dtype) {
  static const LanguageModel f32 = LanguageModel::random(shape_130m(), 1);
  if (dtype == DType::f32) return f32;
  static const LanguageModel half = LanguageModel::random(shape_130m(), 1, DType::bf16);
  return half;
}

// A plain read of as many bytes as the model has, by as many threads: the ceiling of decoding.
double read_seconds(std::int64_t bytes, int threads) {
  static std::vector<std::uint64_t> memory;
  memory.resize(static_cast<std::size_t>(bytes / 8), 1);
  std::vector<std::thread> readers;
  std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads) * 8);
  const auto start = std::chrono::steady_clock::now();
  const std::size_t share = memory.size() / static_cast<std::size_t>(threads);
  for (int i = 0; i < threads; ++i) {
    readers.emplace_back([&, i] {
      const std::uint64_t* first = memory.data() + static_cast<std::size_t>(i) * share;
      std::uint64_t sum = 0;
      for (std::size_t k = 0; k < share; ++k) sum += first[k];
      sums[static_cast<std::size_t>(i) * 8] = sum;
    });
  }
  for (std::thread& reader : readers) reader.join();
  benchmark::DoNotOptimize(sums.data());
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Tensor some_ids(std::int64_t time) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < time; ++i)
    ids.push_back(static_cast<std::int32_t>(i * 7919 % 50280));
  return Tensor::from(ids, {1, time});
}

// One token at a time, alternating with the plain read so that both see the same machine.
void decode(benchmark::State& bench, DType dtype) {
  const LanguageModel& model = model_130m(dtype);
  Stream stream(Device::cpu(), static_cast<int>(bench.range(0)));
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32);
  const Tensor id = some_ids(1);
  const std::int64_t bytes = model.parameters() * size_of(dtype);
  model.forward(id, state, logits, stream);
  double read = 0;
  double forward = 0;
  for (auto _ : bench) {
    read += read_seconds(bytes, stream.threads());
    const auto start = std::chrono::steady_clock::now();
    model.forward(id, state, logits, stream);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    forward += seconds;
    bench.SetIterationTime(seconds);
  }
  bench.counters["of_read_speed"] = read / forward;
  bench.counters["GB/s"] =
      static_cast<double>(bytes) * static_cast<double>(bench.iterations()) / forward / 1e9;
}

// A prompt of 512 tokens, the logits of its last position.
void prefill(benchmark::State& bench, DType dtype) {
  const LanguageModel& model = model_130m(dtype);
  Stream stream(Device::cpu(), static_cast<int>(bench.range(0)));
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32);
  const Tensor ids = some_ids(512);
  model.forward(ids, state, logits, stream);
  for (auto _ : bench) {
    state.reset(stream);
    model.forward(ids, state, logits, stream);
  }
  bench.counters["tok/s"] = benchmark::Counter(512.0 * static_cast<double>(bench.iterations()),
                                               benchmark::Counter::kIsRate);
}

// What keeping the state in hand costs: a snapshot after every chunk of 512 tokens.
void clone_after_chunk(benchmark::State& bench) {
  const LanguageModel& model = model_130m(DType::f32);
  const StackState state = model.make_state(1);
  for (auto _ : bench) benchmark::DoNotOptimize(state.clone());
  bench.SetBytesProcessed(bench.iterations() * state.bytes());
}

// A layer call with nothing to do.
void layer_time_0(benchmark::State& bench) {
  LayerConfig config;
  config.d_model = 768;
  const Layer layer = Layer::random(config, 1);
  MambaState state = layer.make_state(1);
  Tensor x({1, 0, 768}, DType::f32);
  Tensor y({1, 0, 768}, DType::f32);
  Stream stream(Device::cpu(), 2);
  for (auto _ : bench) layer.forward(x, state, y, stream);
}

BENCHMARK_CAPTURE(decode, f32, DType::f32)
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(3);
BENCHMARK_CAPTURE(decode, bf16, DType::bf16)
    ->Arg(1)
    ->Arg(2)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(3);
BENCHMARK_CAPTURE(prefill, f32, DType::f32)
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(3);
BENCHMARK_CAPTURE(prefill, bf16, DType::bf16)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->MinTime(3);
BENCHMARK(clone_after_chunk)->Unit(benchmark::kMicrosecond);
BENCHMARK(layer_time_0);

}  // namespace
