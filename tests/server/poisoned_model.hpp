// A model with which a request can go wrong in the middle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include <mamba/language_model.hpp>

namespace mamba::testing {

// With random weights, in f32: it has no finite logit after a text with `poison` in it.
inline LanguageModel poisoned_model(std::int64_t vocab, std::int32_t poison) {
  LanguageModelConfig config;
  config.layer.d_model = 16;
  config.n_layer = 2;
  config.vocab_size = vocab;
  config.tie_embeddings = false;
  config = config.resolved();
  LanguageModelWeights weights = random_model_weights(config, DType::f32, 5);
  float* row = weights.embedding.data<float>() + poison * config.layer.d_model;
  std::fill_n(row, config.layer.d_model, std::nanf(""));
  float* head = weights.head.data<float>();  // clear leads: no choice depends on rounding
  for (std::int64_t i = 0; i < weights.head.count(); ++i) head[i] *= 40;
  return LanguageModel(config, std::move(weights));
}

}  // namespace mamba::testing
