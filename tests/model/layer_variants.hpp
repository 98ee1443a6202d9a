// Layers of every option, with weights on which every operand matters.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <mamba/layer.hpp>

#include "testing.hpp"

namespace mamba::testing {

inline LayerConfig config_of(std::int64_t d_model, std::int64_t d_state, std::int64_t d_conv) {
  LayerConfig config;
  config.d_model = d_model;
  config.d_state = d_state;
  config.d_conv = d_conv;
  return config;
}

struct Variant {
  std::string name;
  LayerConfig config;
};

// A Mamba-2 of few channels.
inline LayerConfig mamba2_of(std::int64_t d_model, std::int64_t d_state, std::int64_t d_conv,
                             std::int64_t head_dim, std::int64_t groups) {
  LayerConfig config = config_of(d_model, d_state, d_conv);
  config.mixer = MixerKind::mamba2;
  config.head_dim = head_dim;
  config.groups = groups;
  return config;
}

inline std::vector<Variant> mamba2_variants() {
  std::vector<Variant> list{{"mamba2", mamba2_of(24, 16, 4, 16, 1)},
                            {"mamba2 one", mamba2_of(8, 1, 1, 1, 1)},
                            {"mamba2 odd", mamba2_of(15, 5, 3, 5, 3)}};
  LayerConfig biased = mamba2_of(16, 8, 2, 8, 2);
  biased.use_bias = true;
  biased.norm_before_gate = true;
  biased.dt_low = 0.01f;
  biased.dt_high = 0.05f;
  list.push_back({"mamba2 biased", biased});
  LayerConfig wide = mamba2_of(10, 128, 5, 20, 1);
  wide.use_conv_bias = false;
  wide.d_inner = 60;
  wide.gated_norm_epsilon = 1e-2f;
  list.push_back({"mamba2 wide", wide});
  LayerConfig gated = mamba2_of(12, 8, 4, 6, 2);
  gated.rmsnorm = false;
  list.push_back({"mamba2 without norm", gated});
  return list;
}

inline std::vector<Variant> mamba1_variants() {
  std::vector<Variant> list{{"published", config_of(24, 16, 4)},
                            {"one", config_of(8, 1, 1)},
                            {"odd", config_of(17, 5, 3)}};
  LayerConfig biased = config_of(20, 8, 2);
  biased.use_bias = true;
  biased.expand = 1;
  biased.dt_rank = 5;
  list.push_back({"biased", biased});
  LayerConfig falcon = config_of(16, 16, 4);
  falcon.norm_dt_b_c = true;
  falcon.d_inner = 24;
  list.push_back({"falcon", falcon});
  LayerConfig wide = config_of(12, 100, 5);
  wide.use_conv_bias = false;
  wide.expand = 3;
  list.push_back({"wide", wide});
  LayerConfig gated = config_of(14, 6, 4);
  gated.gated_norm = true;
  gated.initial_D = 0;
  list.push_back({"gated", gated});
  LayerConfig normed = gated;
  normed.norm_dt_b_c = true;
  list.push_back({"gated and normed", normed});
  return list;
}

inline std::vector<Variant> variants() {
  std::vector<Variant> list = mamba1_variants();
  for (Variant& one : mamba2_variants()) list.push_back(std::move(one));
  return list;
}

// Weights on which every operand matters: biases that are not zero, D that is not one.
inline LayerWeights lively_weights(const LayerConfig& config, DType dtype, std::uint64_t seed) {
  LayerWeights weights = random_layer_weights(config, dtype, seed);
  Random random(seed);
  LayerWeights::each(weights, config.resolved(), dtype,
                     [&](const std::string& name, Tensor& tensor, const Shape& shape, DType type) {
                       if (name == "in_proj.bias" || name == "out_proj.bias" || name == "D" ||
                           name == "norm.weight" || name == "norm.bias") {
                         tensor = random.normal_tensor(shape, type);
                       }
                     });
  return weights;
}

inline Layer lively_layer(const LayerConfig& config, DType dtype, Device device,
                          std::uint64_t seed) {
  LayerWeights weights = lively_weights(config, dtype, seed);
  LayerWeights::each(
      weights, config.resolved(), dtype,
      [&](const std::string&, Tensor& tensor, const Shape&, DType) { tensor = tensor.to(device); });
  return Layer(config, std::move(weights));
}

}  // namespace mamba::testing
