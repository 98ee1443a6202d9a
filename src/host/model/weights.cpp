#include <mamba/weights.hpp>

#include <cmath>

#include <mamba/check.hpp>

#include "host/model/draws.hpp"
#include "host/model/mixers.hpp"

namespace mamba {

LayerWeights zero_gradients(const LayerConfig& config, Device device) {
  LayerWeights gradients;
  LayerWeights::each(gradients, config.resolved(), DType::f32,
                     [&](const char*, Tensor& tensor, const Shape& shape, DType dtype) {
                       tensor = Tensor::zeros(shape, dtype, device);
                     });
  return gradients;
}

LanguageModelWeights zero_gradients(const LanguageModelConfig& config, Device device) {
  const LanguageModelConfig c = config.resolved();
  LanguageModelWeights gradients;
  gradients.stack.layers.resize(static_cast<std::size_t>(c.n_layer));
  gradients.stack.norms.resize(static_cast<std::size_t>(c.n_layer));
  LanguageModelWeights::each(gradients, c, DType::f32,
                             [&](const std::string&, Tensor& tensor, const Shape& shape,
                                 DType dtype) { tensor = Tensor::zeros(shape, dtype, device); });
  return gradients;
}

LayerWeights random_layer_weights(const LayerConfig& config, DType dtype, std::uint64_t seed,
                                  std::int64_t n_layer) {
  check::storage("random weights", "dtype", dtype);
  check::range("random weights", "n_layer", n_layer, 1, INT32_MAX);
  const LayerConfig c = config.resolved();
  return host_mixer(c).random(c, dtype, seed, 0, n_layer);
}

LanguageModelWeights random_model_weights(const LanguageModelConfig& config, DType dtype,
                                          std::uint64_t seed) {
  check::storage("random weights", "dtype", dtype);
  const LanguageModelConfig c = config.resolved();
  const Shape vocabulary{c.vocab_rows, c.layer.d_model};
  const Shape norm{c.layer.d_model};
  const HostMixer& mixer = host_mixer(c.layer);
  const auto after_layers = static_cast<std::uint64_t>(c.n_layer) * 16;
  LanguageModelWeights w;
  const draws::Numbers normal(seed, after_layers);
  w.embedding =
      draws::filled(vocabulary, dtype, [&](std::int64_t i) { return 0.02 * normal.normal(i); });
  for (std::int64_t i = 0; i < c.n_layer; ++i) {
    w.stack.layers.push_back(
        mixer.random(c.layer, dtype, seed, static_cast<std::uint64_t>(i), c.n_layer));
    w.stack.norms.push_back(draws::constant(norm, DType::f32, 1));
  }
  w.stack.norm_f = draws::constant(norm, DType::f32, 1);
  if (!c.tie_embeddings) {
    const double bound = 1 / std::sqrt(static_cast<double>(c.layer.d_model));
    w.head = draws::symmetric(vocabulary, dtype, bound, draws::Numbers(seed, after_layers + 1));
  }
  return w;
}

}  // namespace mamba
