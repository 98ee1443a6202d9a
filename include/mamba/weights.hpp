// The weights of one layer and of a whole model, each with one list of (name, tensor, shape, dtype)
// that allocating, checking, loading, saving, counting and initialising walk.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include <mamba/config.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// Matrices and projection biases have the model's dtype; what enters the recurrence and the norms
// is always f32. Which of them a layer has is said by its config. Gradients are LayerWeights too,
// with every tensor f32; one that is absent there is not computed.
// Mamba-2 has no x_proj and no dt_proj, but heads and groups: conv_channels is d_inner + 2 groups
// d_state there, and d_inner in Mamba-1.
struct LayerWeights {
  Tensor in_proj;            // [2 d_inner, d_model]: rows of x first, then of z; in Mamba-2
                             // [d_inner + conv_channels + heads, d_model]: of z, x, B, C, dt
  Tensor in_proj_bias;       // [rows of in_proj], with use_bias
  Tensor conv_weight;        // [conv_channels, d_conv] f32
  Tensor conv_bias;          // [conv_channels] f32, with use_conv_bias
  Tensor x_proj;             // [dt_rank + 2 d_state, d_inner]: rows of dt, B, C
  Tensor dt_proj;            // [d_inner, dt_rank]
  Tensor dt_bias;            // [d_inner] f32; in Mamba-2 [heads]
  Tensor A_log;              // [d_inner, d_state] f32; in Mamba-2 [heads]
  Tensor D;                  // [d_inner] f32; in Mamba-2 [heads]
  Tensor gated_norm_weight;  // [d_inner] f32, with gated_norm, and with Mamba-2's rmsnorm
  Tensor gated_norm_bias;    // [d_inner] f32, with gated_norm
  Tensor out_proj;           // [d_model, d_inner]
  Tensor out_proj_bias;      // [d_model], with use_bias

  // f(name, tensor, shape, dtype) for every tensor that `config` (resolved) has, in a fixed order.
  // `name` is the published one. Self is LayerWeights or const LayerWeights.
  template <class Self, class F>
  static void each(Self& weights, const LayerConfig& config, DType dtype, F&& f);
};

namespace detail {

// One of them, of whichever weights.
using LayerWeightMember = Tensor LayerWeights::*;

struct LayerWeight {
  const char* name = nullptr;
  LayerWeightMember tensor = nullptr;
  Shape shape;
  DType dtype = DType::f32;
  bool decays = false;      // where it is trained: see AdamWOptions
  bool wanted = true;       // by the config: `each` passes the others over
  Shape published = shape;  // in files
};

// A list in place, since a backward run walks it and allocates nothing.
class LayerWeightList {
 public:
  static constexpr std::size_t most = 16;
  LayerWeightList(std::initializer_list<LayerWeight> list) : size_(list.size()) {
    if (size_ > most) throw ArgumentError("LayerWeightList", "size", "16", std::to_string(size_));
    std::copy(list.begin(), list.end(), list_.begin());
  }
  const LayerWeight& front() const { return list_.front(); }
  const LayerWeight* begin() const { return list_.data(); }
  const LayerWeight* end() const { return list_.data() + size_; }

 private:
  std::array<LayerWeight, most> list_;
  std::size_t size_;
};

// The list of the config's mixer: every tensor that it may have. The first is the matrix whose
// dtype and device are the layer's.
LayerWeightList layer_weights(const LayerConfig& config, DType dtype);

}  // namespace detail

template <class Self, class F>
void LayerWeights::each(Self& weights, const LayerConfig& config, DType dtype, F&& f) {
  for (const detail::LayerWeight& one : detail::layer_weights(config, dtype)) {
    if (one.wanted) f(one.name, weights.*one.tensor, one.shape, one.dtype);
  }
}

// The residual layers, each with the norm before it, and the norm after the last.
struct StackWeights {
  std::vector<LayerWeights> layers;
  std::vector<Tensor> norms;  // n_layer x [d_model] f32
  Tensor norm_f;              // [d_model] f32

  // As many norms as layers, else an ArgumentError before the first f.
  template <class Self, class F>
  static void each(Self& weights, const LanguageModelConfig& config, DType dtype, F&& f) {
    check_sizes(weights.layers.size(), weights.norms.size());
    const Shape norm_shape{config.layer.d_model};
    for (std::size_t i = 0; i < weights.layers.size(); ++i) {
      const std::string prefix = "backbone.layers." + std::to_string(i) + ".";
      f(prefix + "norm.weight", weights.norms[i], norm_shape, DType::f32);
      LayerWeights::each(weights.layers[i], config.layer, dtype,
                         [&](const char* name, auto& tensor, const Shape& shape, DType type) {
                           f(prefix + "mixer." + name, tensor, shape, type);
                         });
    }
    f(std::string("backbone.norm_f.weight"), weights.norm_f, norm_shape, DType::f32);
  }

  static void check_sizes(std::size_t layers, std::size_t norms) {
    if (layers == norms) return;
    throw ArgumentError("StackWeights", "norms", std::to_string(layers) + " (one for each layer)",
                        std::to_string(norms));
  }
};

struct LanguageModelWeights {
  Tensor embedding;  // [vocab_rows, d_model]
  StackWeights stack;
  Tensor head;  // [vocab_rows, d_model]; absent when tied: the embedding serves

  template <class Self, class F>
  static void each(Self& weights, const LanguageModelConfig& config, DType dtype, F&& f) {
    StackWeights::check_sizes(weights.stack.layers.size(), weights.stack.norms.size());
    const Shape vocabulary{config.vocab_rows, config.layer.d_model};
    f(std::string("backbone.embeddings.weight"), weights.embedding, vocabulary, dtype);
    StackWeights::each(weights.stack, config, dtype, f);
    if (!config.tie_embeddings) f(std::string("lm_head.weight"), weights.head, vocabulary, dtype);
  }
};

// What is there of LayerWeights, StackWeights or LanguageModelWeights, in the order of `each`;
// `config` is a LayerConfig or LanguageModelConfig, as `each` takes it.
template <class Weights, class Config>
std::vector<TensorView> tensors(Weights& weights, const Config& config) {
  std::vector<TensorView> list;
  Weights::each(weights, config, DType::f32, [&](const auto&, Tensor& tensor, const Shape&, DType) {
    if (tensor) list.push_back(tensor);
  });
  return list;
}

// Every weight's gradient for such a layer or model: all f32, zero.
LayerWeights zero_gradients(const LayerConfig& config, Device device = Device::cpu());
LanguageModelWeights zero_gradients(const LanguageModelConfig& config,
                                    Device device = Device::cpu());

// Fresh weights by the published recipe (mamba_ssm 2.3): every Linear U(+-1/sqrt(fan_in)), out_proj
// further divided by sqrt(n_layer), biases zero; conv weight and bias U(+-1/sqrt(d_conv)); dt_proj
// U(+-dt_scale/sqrt(dt_rank)) and its bias the inverse softplus of a dt log-uniform in [dt_min,
// dt_max]; A_log[d, n] = log(n + 1), of a head in Mamba-2 the log of U(1, 16); D = initial_D; norms
// 1 and their biases 0; embedding N(0, 0.02). Drawn from Philox keyed by `seed`: the same on every
// machine. On the CPU.
LayerWeights random_layer_weights(const LayerConfig& config, DType dtype, std::uint64_t seed,
                                  std::int64_t n_layer = 1);
LanguageModelWeights random_model_weights(const LanguageModelConfig& config, DType dtype,
                                          std::uint64_t seed);

}  // namespace mamba
