// What the files of tests/golden/files hold: the program that made them and the test that reads
// them agree on it here.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/config.hpp>
#include <mamba/state.hpp>

namespace mamba::golden_files {

// Multiples of 1/16, which every storage dtype holds exactly.
inline void fill(Tensor& tensor, int first) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < tensor.count(); ++i) {
    values.push_back(static_cast<float>((first + 37 * i) % 101 - 50) / 16);
  }
  tensor = Tensor::from(values, tensor.shape()).to(Device::cpu(), tensor.dtype());
}

inline LayerConfig layer_config() {
  LayerConfig config;
  config.d_model = 4;
  config.d_state = 3;
  return config;
}

inline MambaState layer_state(std::int64_t batch, DType dtype, int first) {
  MambaState state(layer_config(), batch, dtype);
  fill(state.conv, first);
  fill(state.ssm, first + 1);
  return state;
}

inline StackState stack_state(std::int64_t batch, DType dtype) {
  StackState state;
  for (int i = 0; i < 2; ++i) state.layers.push_back(layer_state(batch, dtype, 10 * i));
  return state;
}

inline Tensor extra() { return Tensor::from<std::int32_t>({3, -1, 4}, {3}); }

// The model of the generation and of the prefix is the golden folder of this name.
constexpr const char* model_name = "biased";
inline std::vector<std::int32_t> prompt() { return {5, 17, 2, 40, 63, 8, 21}; }

// Of the training checkpoint.
inline LanguageModelConfig training_config() {
  LanguageModelConfig config;
  config.layer = layer_config();
  config.n_layer = 2;
  config.vocab_size = 8;
  return config;
}

}  // namespace mamba::golden_files
