// What tests of generation write with.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>

#include "testing.hpp"

namespace mamba::testing {

using Ids = std::vector<std::int32_t>;

inline const Ids prompt{84, 104, 101, 32, 115, 116, 97, 116, 101};  // "The state"

// Draws among several tokens, by every limit that there is.
inline SamplingOptions lively(std::uint64_t seed) {
  SamplingOptions options;
  options.temperature = 1.2f;
  options.top_k = 40;
  options.top_p = 0.95f;
  options.min_p = 0.01f;
  options.repetition_penalty = 1.1f;
  options.seed = seed;
  return options;
}

// The golden model of bytes.
inline LanguageModel bytes_model(Device device, DType dtype = DType::f32) {
  return LanguageModel::load(golden_folder("bytes"), dtype, device);
}

// That, or a Mamba-2 of bytes whose texts mean nothing.
inline LanguageModel bytes_model(MixerKind mixer, Device device, DType dtype = DType::f32) {
  if (mixer == MixerKind::mamba1) return bytes_model(device, dtype);
  LanguageModelConfig config;
  config.layer.mixer = mixer;
  config.layer.d_model = 64;
  config.layer.d_state = 16;
  config.layer.head_dim = 16;
  config.layer.groups = 2;
  config.n_layer = 2;
  config.vocab_size = 256;
  LanguageModel model = LanguageModel::random(config, 1, dtype, device);
  Random random(2);
  model.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
    if (name == "backbone.embeddings.weight") {
      tensor = random.normal_tensor(tensor.shape(), dtype, 0.3).to(device);
    }
  });
  return model;
}

}  // namespace mamba::testing
