// A model of 130m shape, end to end: what decoding reaches of the memory's speed, and how fast
// prompts go.
#include <benchmark/benchmark.h>

#include <mamba/language_model.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "plain_read.hpp"
#include "random_tensor.hpp"

namespace {

using namespace mamba;
using mamba::bench::random_tensor;

LanguageModelConfig shape_130m(MixerKind mixer) {
  LanguageModelConfig config;
  config.layer.mixer = mixer;
  config.layer.d_model = 768;
  config.n_layer = 24;
  config.vocab_size = 50280;
  return config;
}

// The last one made.
const LanguageModel& model_130m(DType dtype, MixerKind mixer = MixerKind::mamba1) {
  static std::unique_ptr<LanguageModel> model;
  if (model == nullptr || model->dtype() != dtype || model->config().layer.mixer != mixer) {
    model = nullptr;
    model = std::make_unique<LanguageModel>(LanguageModel::random(shape_130m(mixer), 1, dtype));
  }
  return *model;
}

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

Tensor some_ids(std::int64_t time) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < time; ++i)
    ids.push_back(static_cast<std::int32_t>(i * 7919 % 50280));
  return Tensor::from(ids, {1, time});
}

// One token at a time, alternating with a plain read of all weights and states, so that both see
// the same machine.
void model_decode(benchmark::State& bench, DType dtype, MixerKind mixer) {
  const LanguageModel& model = model_130m(dtype, mixer);
  Stream stream(Device::cpu(), static_cast<int>(bench.range(0)));
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32);
  const Tensor id = some_ids(1);
  std::vector<ConstTensorView> weights;
  double bytes = 0;
  model.each_weight([&](const std::string&, const Tensor& tensor) {
    weights.push_back(tensor);
    bytes += static_cast<double>(tensor.bytes());
  });
  for (const MambaState& layer : state.layers) {
    weights.push_back(layer.ssm);
    bytes += static_cast<double>(layer.ssm.bytes());
  }
  for (int i = 0; i < 3; ++i) model.forward(id, state, Logits::last(logits), stream);
  std::vector<double> reads;
  std::vector<double> steps;
  for (auto _ : bench) {
    double start = seconds_now();
    bench::plain_read(weights, stream.threads());
    reads.push_back(seconds_now() - start);
    start = seconds_now();
    model.forward(id, state, Logits::last(logits), stream);
    steps.push_back(seconds_now() - start);
    bench.SetIterationTime(steps.back());
  }
  bench.counters["median_ms"] = median(steps) * 1e3;
  bench.counters["read_ms"] = median(reads) * 1e3;
  bench.counters["of_read_speed"] = median(reads) / median(steps);
  bench.counters["GB/s"] = bytes / median(steps) / 1e9;
}

// The products of all layers with `rows` rows, and nothing else.
class Products {
 public:
  Products(const LanguageModel& model, std::int64_t rows) {
    model.each_weight([&](const std::string& name, const Tensor& weight) {
      if (name.find("_proj.weight") == std::string::npos) return;
      const std::int64_t out = weight.dim(0), in = weight.dim(1);
      if (x_.find(in) == x_.end()) x_[in] = random_tensor({rows, in}, weight.dtype());
      if (y_.find(out) == y_.end()) y_[out] = Tensor({rows, out}, weight.dtype());
      Matmul product;
      product.x = x_[in];
      product.weight = weight;
      product.y = y_[out];
      products_.push_back(product);
    });
  }
  void run(Stream& stream) const {
    for (const Matmul& product : products_) mamba::run(product, stream);
  }

 private:
  std::map<std::int64_t, Tensor> x_, y_;
  std::vector<Matmul> products_;
};

// A prompt of 512 tokens, the logits of its last position, alternating with the layers' products
// alone.
void model_prefill(benchmark::State& bench, DType dtype, MixerKind mixer) {
  const LanguageModel& model = model_130m(dtype, mixer);
  Stream stream(Device::cpu(), static_cast<int>(bench.range(0)));
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32);
  const Tensor ids = some_ids(512);
  const Products products(model, 512);
  model.forward(ids, state, Logits::last(logits), stream);
  products.run(stream);
  std::vector<double> alone, whole;
  for (auto _ : bench) {
    double start = seconds_now();
    products.run(stream);
    alone.push_back(seconds_now() - start);
    state.reset(stream);
    start = seconds_now();
    model.forward(ids, state, Logits::last(logits), stream);
    whole.push_back(seconds_now() - start);
    bench.SetIterationTime(whole.back());
  }
  bench.counters["median_ms"] = median(whole) * 1e3;
  bench.counters["products_ms"] = median(alone) * 1e3;
  bench.counters["of_products"] = median(whole) / median(alone);
  bench.counters["tok/s"] = 512 / median(whole);
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

void threads(benchmark::internal::Benchmark* bench, std::initializer_list<int> counts) {
  for (const int count : counts) bench->Arg(count);
  bench->UseManualTime()->Unit(benchmark::kMillisecond)->MinTime(3);
}
void one_and_two(benchmark::internal::Benchmark* bench) { threads(bench, {1, 2}); }
void two(benchmark::internal::Benchmark* bench) { threads(bench, {2}); }

BENCHMARK_CAPTURE(model_decode, f32, DType::f32, MixerKind::mamba1)->Apply(one_and_two);
BENCHMARK_CAPTURE(model_decode, bf16, DType::bf16, MixerKind::mamba1)->Apply(one_and_two);
BENCHMARK_CAPTURE(model_prefill, f32, DType::f32, MixerKind::mamba1)->Apply(one_and_two);
BENCHMARK_CAPTURE(model_prefill, bf16, DType::bf16, MixerKind::mamba1)->Apply(two);
BENCHMARK_CAPTURE(model_decode, mamba2_f32, DType::f32, MixerKind::mamba2)->Apply(two);
BENCHMARK_CAPTURE(model_prefill, mamba2_f32, DType::f32, MixerKind::mamba2)->Apply(two);
BENCHMARK(clone_after_chunk)->Unit(benchmark::kMicrosecond);
BENCHMARK(layer_time_0);

}  // namespace
