#include <mamba/weights.hpp>

#include <cmath>

#include <mamba/check.hpp>

#include "detail/philox.hpp"

namespace mamba {

namespace {

// Numbers in [0, 1) for one tensor: word i of the tensor numbered `tensor`, keyed by the seed.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t tensor) : seed_(seed), tensor_(tensor) {}

  double uniform(std::int64_t i) const {
    const auto index = static_cast<std::uint64_t>(i);
    return detail::uniform(detail::philox(
        seed_, {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                static_cast<std::uint32_t>(tensor_), static_cast<std::uint32_t>(tensor_ >> 32)}));
  }
  double between(std::int64_t i, double low, double high) const {
    return low + (high - low) * uniform(i);
  }
  double normal(std::int64_t i) const {  // Box-Muller
    return std::sqrt(-2 * std::log1p(-uniform(2 * i))) *
           std::cos(6.283185307179586 * uniform(2 * i + 1));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t tensor_;
};

// tensor[i] = value(i), through f32 to the tensor's dtype.
template <class Value>
Tensor filled(const Shape& shape, DType dtype, Value value) {
  Tensor tensor(shape, DType::f32);
  auto* data = tensor.data<float>();
  for (std::int64_t i = 0; i < shape.count(); ++i) data[i] = static_cast<float>(value(i));
  return dtype == DType::f32 ? std::move(tensor) : tensor.to(Device::cpu(), dtype);
}

Tensor symmetric(const Shape& shape, DType dtype, double bound, Draws draws) {
  return filled(shape, dtype, [&](std::int64_t i) { return draws.between(i, -bound, bound); });
}

Tensor constant(const Shape& shape, DType dtype, double value) {
  return filled(shape, dtype, [&](std::int64_t) { return value; });
}

// softplus(dt_bias) is log-uniform in [dt_min, dt_max] and not below dt_floor.
Tensor dt_bias(const LayerConfig& c, Draws draws) {
  return filled({c.d_inner}, DType::f32, [&](std::int64_t i) {
    const double dt = std::exp(draws.between(i, std::log(c.dt_min), std::log(c.dt_max)));
    const double floored = std::max<double>(dt, c.dt_floor);
    return floored + std::log(-std::expm1(-floored));  // the inverse of softplus
  });
}

LayerWeights layer_weights(const LayerConfig& c, DType dtype, std::uint64_t seed,
                           std::uint64_t layer, std::int64_t n_layer) {
  const auto draws = [&](std::uint64_t tensor) { return Draws(seed, layer * 16 + tensor); };
  const auto fan_in = [](std::int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); };
  LayerWeights w;
  w.in_proj = symmetric({2 * c.d_inner, c.d_model}, dtype, fan_in(c.d_model), draws(0));
  w.conv_weight = symmetric({c.d_inner, c.d_conv}, DType::f32, fan_in(c.d_conv), draws(1));
  if (c.use_conv_bias) w.conv_bias = symmetric({c.d_inner}, DType::f32, fan_in(c.d_conv), draws(2));
  w.x_proj = symmetric({c.dt_rank + 2 * c.d_state, c.d_inner}, dtype, fan_in(c.d_inner), draws(3));
  w.dt_proj = symmetric({c.d_inner, c.dt_rank}, dtype, c.dt_scale * fan_in(c.dt_rank), draws(4));
  w.dt_bias = dt_bias(c, draws(5));
  w.A_log = filled({c.d_inner, c.d_state}, DType::f32, [&](std::int64_t i) {
    return std::log(static_cast<double>(i % c.d_state + 1));
  });
  w.D = constant({c.d_inner}, DType::f32, c.initial_D);
  if (c.gated_norm) {
    w.gated_norm_weight = constant({c.d_inner}, DType::f32, 1);
    w.gated_norm_bias = constant({c.d_inner}, DType::f32, 0);
  }
  w.out_proj =
      symmetric({c.d_model, c.d_inner}, dtype, fan_in(c.d_inner) * fan_in(n_layer), draws(6));
  if (c.use_bias) {
    w.in_proj_bias = constant({2 * c.d_inner}, dtype, 0);
    w.out_proj_bias = constant({c.d_model}, dtype, 0);
  }
  return w;
}

}  // namespace

LayerWeights zero_gradients(const LayerConfig& config, Device device) {
  LayerWeights gradients;
  LayerWeights::each(gradients, config.resolved(), DType::f32,
                     [&](const char*, Tensor& tensor, const Shape& shape, DType dtype) {
                       tensor = Tensor::zeros(shape, dtype, device);
                     });
  return gradients;
}

ModelWeights zero_gradients(const ModelConfig& config, Device device) {
  const ModelConfig c = config.resolved();
  ModelWeights gradients;
  gradients.stack.layers.resize(static_cast<std::size_t>(c.n_layer));
  gradients.stack.norms.resize(static_cast<std::size_t>(c.n_layer));
  ModelWeights::each(gradients, c, DType::f32,
                     [&](const std::string&, Tensor& tensor, const Shape& shape, DType dtype) {
                       tensor = Tensor::zeros(shape, dtype, device);
                     });
  return gradients;
}

LayerWeights random_layer_weights(const LayerConfig& config, DType dtype, std::uint64_t seed,
                                  std::int64_t n_layer) {
  check::storage("random weights", "dtype", dtype);
  check::range("random weights", "n_layer", n_layer, 1, INT32_MAX);
  return layer_weights(config.resolved(), dtype, seed, 0, n_layer);
}

ModelWeights random_model_weights(const ModelConfig& config, DType dtype, std::uint64_t seed) {
  check::storage("random weights", "dtype", dtype);
  const ModelConfig c = config.resolved();
  const Shape vocabulary{c.vocab_rows, c.layer.d_model};
  const Shape norm{c.layer.d_model};
  const auto after_layers = static_cast<std::uint64_t>(c.n_layer) * 16;
  ModelWeights w;
  const Draws normal(seed, after_layers);
  w.embedding = filled(vocabulary, dtype, [&](std::int64_t i) { return 0.02 * normal.normal(i); });
  for (std::int64_t i = 0; i < c.n_layer; ++i) {
    w.stack.layers.push_back(
        layer_weights(c.layer, dtype, seed, static_cast<std::uint64_t>(i), c.n_layer));
    w.stack.norms.push_back(constant(norm, DType::f32, 1));
  }
  w.stack.norm_f = constant(norm, DType::f32, 1);
  if (!c.tie_embeddings) {
    const double bound = 1 / std::sqrt(static_cast<double>(c.layer.d_model));
    w.head = symmetric(vocabulary, dtype, bound, Draws(seed, after_layers + 1));
  }
  return w;
}

}  // namespace mamba
