// A language model's step and its prompt on CUDA, of the published shapes with random weights. A
// step is what a text costs per token: embedding to sampled id, the id fed back, in a graph.
#include <benchmark/benchmark.h>

#include <mamba/detail/constant_weights.hpp>
#include <mamba/language_model.hpp>

#include <memory>
#include <utility>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using namespace mamba;

struct Size {
  const char* name;
  std::int64_t d_model, n_layer;
  MixerKind mixer = MixerKind::mamba1;
};
constexpr Size sizes[] = {{"130m", 768, 24},
                          {"370m", 1024, 48},
                          {"1.4b", 2048, 48},
                          {"2.8b", 2560, 64},
                          {"mamba2-130m", 768, 24, MixerKind::mamba2},
                          {"mamba2-2.7b", 2560, 64, MixerKind::mamba2}};

LanguageModelConfig config_of(const Size& size) {
  LanguageModelConfig config;
  config.layer.mixer = size.mixer;
  config.layer.d_model = size.d_model;
  config.n_layer = size.n_layer;
  config.vocab_size = 50280;
  return config.resolved();
}

// Every layer has a place of its own, so that weights come from memory; their values repeat.
LanguageModel make(const Size& size) {
  const LanguageModelConfig config = config_of(size);
  const LayerWeights one = random_layer_weights(config.layer, DType::bf16, 1, size.n_layer);
  const Tensor norm = random_tensor({size.d_model}, DType::f32, 1, 1);
  LanguageModelWeights weights;
  weights.embedding = random_tensor({config.vocab_rows, size.d_model}, DType::bf16, -0.03f, 0.03f);
  for (std::int64_t i = 0; i < size.n_layer; ++i) {
    LayerWeights layer;
    std::vector<const Tensor*> from;
    LayerWeights::each(
        one, config.layer, DType::bf16,
        [&](const char*, const Tensor& t, const Shape&, DType) { from.push_back(&t); });
    std::size_t next = 0;
    LayerWeights::each(
        layer, config.layer, DType::bf16,
        [&](const char*, Tensor& t, const Shape&, DType) { t = from[next++]->to(gpu); });
    weights.stack.layers.push_back(std::move(layer));
    weights.stack.norms.push_back(norm.clone());
  }
  weights.stack.norm_f = norm.clone();
  return LanguageModel(config, std::move(weights));
}

// The last one made: benchmarks of one size follow each other.
const LanguageModel& model_of(std::int64_t index) {
  static std::unique_ptr<LanguageModel> model;
  static std::int64_t made = -1;
  if (made != index) {
    model = nullptr;
    model = std::make_unique<LanguageModel>(make(sizes[index]));
    made = index;
  }
  return *model;
}

double weight_bytes(const LanguageModel& model) {
  double bytes = 0;
  model.each_weight([&](const std::string&, const Tensor& t) { bytes += t.bytes(); });
  return bytes;
}

// {size, batch}: one token of every row. The floor: weights read once, states read and written.
void decode(benchmark::State& bench) {
  const LanguageModel& model = model_of(bench.range(0));
  const std::int64_t batch = bench.range(1), vocab = model.config().vocab_size;
  StackState state = model.make_state(batch);
  Tensor logits({batch, vocab}, DType::f32, gpu), ids = Tensor::zeros({batch}, DType::i32, gpu);
  const auto step = [&](Stream& stream) {
    model.forward(ids.view().reshape({batch, 1}), state, Logits::last(logits), stream);
    Sample sample;
    sample.logits = logits;
    sample.ids = ids;
    run(sample, stream);
  };
  const double bytes = weight_bytes(model) + 2 * static_cast<double>(state.bytes());
  const double seconds = seconds_per_call({step});
  report(bench, seconds, bytes / bytes_per_second);
  bench.counters["tokens_per_second"] = static_cast<double>(batch) / seconds;
}

// Of a step of a layer: of Mamba-1 its products and scan, of Mamba-2 its products and, in chunks of
// 128 steps, those of Ssd.
double step_seconds(const LayerConfig& c) {
  const auto d_inner = static_cast<double>(c.d_inner), d_model = static_cast<double>(c.d_model);
  const auto d_state = static_cast<double>(c.d_state), dt_rank = static_cast<double>(c.dt_rank);
  if (c.mixer == MixerKind::mamba1) {
    const double products = 2 * d_inner * (3 * d_model + 2 * dt_rank + 2 * d_state);
    return products / bf16_flop_per_second + d_inner * (d_state + 4) / special_functions_per_second;
  }
  const auto heads = d_inner / static_cast<double>(c.head_dim);
  const double products = 2 * d_model * (3 * d_inner + 2 * d_state + heads);
  const double ssd = d_inner * (2 * 128 + 4 * d_state) + 2 * 128 * d_state;
  return (products + ssd) / bf16_flop_per_second;
}

// {size, batch, time}: a prompt, and the logits after it. The floor: the products and the scans.
void prefill(benchmark::State& bench) {
  const LanguageModel& model = model_of(bench.range(0));
  const std::int64_t batch = bench.range(1), time = bench.range(2);
  StackState state = model.make_state(batch);
  Tensor logits({batch, model.config().vocab_size}, DType::f32, gpu);
  const Tensor ids = Tensor::zeros({batch, time}, DType::i32, gpu);
  const auto read = [&](Stream& stream) {
    model.forward(ids, state, Logits::last(logits), stream);
  };
  const auto steps = static_cast<double>(batch * time * model.config().n_layer);
  report(bench, seconds_per_call({read}), steps * step_seconds(model.config().layer));
}

// {rows, in, out}: products one after the other as in a model's step, on weights that are not in
// the cache. The floor: the weights, x and y.
void products(benchmark::State& bench) {
  const std::int64_t rows = bench.range(0), in = bench.range(1), out = bench.range(2);
  const Tensor x = random_tensor({rows, in}, DType::bf16, -1, 1);
  const Tensor one = random_tensor({out, in}, DType::bf16, -1, 1);
  Tensor y({rows, out}, DType::bf16, gpu);
  std::vector<Tensor> weights;
  const std::size_t count = copies_of(one.bytes());
  for (std::size_t i = 0; i < count; ++i) weights.push_back(one.clone());
  const auto all = [&](Stream& stream) {
    const detail::ConstantWeights constant(stream);
    for (const Tensor& weight : weights) {
      Matmul op;
      op.x = x;
      op.weight = weight;
      op.y = y;
      run(op, stream);
    }
  };
  const double bytes = static_cast<double>(one.bytes() + x.bytes() + y.bytes());
  report(bench, seconds_per_call({all}) / static_cast<double>(count), bytes / bytes_per_second);
}

void product_shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"rows", "in", "out"})->Iterations(1)->UseManualTime();
  for (const std::int64_t rows : {1, 8, 16, 64}) {
    for (const std::int64_t d : {768, 1024, 2048, 2560}) {
      bench->Args({rows, d, 4 * d})->Args({rows, 2 * d, d / 16 + 32});
      bench->Args({rows, d / 16, 2 * d})->Args({rows, 2 * d, d});
    }
    bench->Args({rows, 768, 50280});
  }
}
void decode_sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"size", "batch"})->Iterations(1)->UseManualTime();
  for (const std::int64_t size : {0, 1, 2, 3, 4, 5}) {
    for (const std::int64_t batch : {1, 8, 16, 32, 64}) bench->Args({size, batch});
  }
}
void prefill_sizes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"size", "batch", "time"})->Iterations(1)->UseManualTime();
  for (const std::int64_t size : {0, 3, 4, 5}) {
    for (const std::int64_t batch : {1, 8}) bench->Args({size, batch, 2048});
  }
}
BENCHMARK(products)->Name("cuda_product_bf16")->Apply(product_shapes);
BENCHMARK(decode)->Name("cuda_decode_bf16")->Apply(decode_sizes);
BENCHMARK(prefill)->Name("cuda_prefill_bf16")->Apply(prefill_sizes);

}  // namespace
