// The model behind the server that is fuzzed.
#pragma once

#include <mamba/language_model.hpp>

namespace fuzz {

inline mamba::LanguageModel server_model() {
  mamba::LanguageModelConfig config;
  config.layer.d_model = 8;
  config.layer.d_state = 2;
  config.n_layer = 1;
  config.vocab_size = 256;
  return mamba::LanguageModel::random(config, 1);
}

}  // namespace fuzz
