#include "rl/agent/agent.hpp"

#include <mamba/layer.hpp>

#include <cmath>

#include "rl/agent/initialise.hpp"

namespace mamba_rl {

namespace {

using mamba::DType;
using mamba::Tensor;

mamba::Matmul linear(mamba::ConstTensorView x, const Tensor& weight, const Tensor& bias,
                     mamba::TensorView y) {
  mamba::Matmul product;
  product.x = x;
  product.weight = weight;
  product.bias = bias;
  product.y = y;
  return product;
}

mamba::LayerNorm norm_of(mamba::ConstTensorView x, const Tensor& weight, const Tensor& bias,
                         mamba::TensorView y) {
  mamba::LayerNorm norm;
  norm.x = x;
  norm.weight = weight;
  norm.bias = bias;
  norm.y = y;
  norm.epsilon = Agent::norm_epsilon;
  return norm;
}

Tensor ones(std::int64_t count, mamba::Device device) {
  return Tensor::from(std::vector<float>(static_cast<std::size_t>(count), 1.0f), {count})
      .to(device);
}

}  // namespace

std::string AgentConfig::to_string() const {
  const ControllerConfig& c = controller;
  return c.kind + (c.published_block ? " (published block)" : "") + ", width " +
         std::to_string(c.width) + ", layers " + std::to_string(c.layers) + ", observation " +
         std::to_string(observation) + ", actions " + std::to_string(actions);
}

Agent::Agent(const AgentConfig& config, mamba::Device device)
    : config_(config), controller_(Controller::make(config.controller, device)) {
  const std::int64_t width = config.controller.width, outputs = config.actions + 1;
  // The policy begins near uniform and the value near zero.
  constexpr float head_bound = 0.01f;
  Initialiser draw(config.controller.seed + 1000);
  weights_.encoder = draw.uniform({width, config.observation},
                                  1 / std::sqrt(static_cast<float>(config.observation)), device);
  if (config.controller.published_block) {
    weights_.encoder_bias = Tensor::zeros({width}, DType::f32, device);
    gradients_.encoder_bias = Tensor::zeros({width}, DType::f32, device);
  }
  weights_.norm = ones(width, device);
  weights_.norm_bias = Tensor::zeros({width}, DType::f32, device);
  weights_.heads = draw.uniform({outputs, width}, head_bound, device);
  weights_.heads_bias = Tensor::zeros({outputs}, DType::f32, device);
  gradients_.encoder = Tensor::zeros(weights_.encoder.shape(), DType::f32, device);
  gradients_.norm = Tensor::zeros({width}, DType::f32, device);
  gradients_.norm_bias = Tensor::zeros({width}, DType::f32, device);
  gradients_.heads = Tensor::zeros(weights_.heads.shape(), DType::f32, device);
  gradients_.heads_bias = Tensor::zeros({outputs}, DType::f32, device);
}

void Agent::remember(mamba::ConstTensorView observations, mamba::StackState& state,
                     mamba::ConstTensorView reset, mamba::TensorView hidden, AgentTape* tape,
                     mamba::Stream& stream) const {
  mamba::Scratch scratch(stream);
  const mamba::TensorView encoded = scratch.take(hidden.shape(), DType::f32);
  run(linear(observations, weights_.encoder, weights_.encoder_bias, encoded), stream);
  if (tape != nullptr) {
    if (tape->controller == nullptr) tape->controller = controller_->make_tape();
    if (tape->observations.shape() != observations.shape()) {
      tape->observations = Tensor(observations.shape(), DType::f32, device());
    }
    mamba::copy(observations, tape->observations, stream);
  }
  controller_->forward(encoded, state, reset, hidden,
                       tape != nullptr ? tape->controller.get() : nullptr, stream);
}

void Agent::decide(mamba::ConstTensorView hidden, mamba::TensorView out,
                   mamba::Stream& stream) const {
  mamba::Scratch scratch(stream);
  const mamba::TensorView normed = scratch.take(hidden.shape(), DType::f32);
  run(norm_of(hidden, weights_.norm, weights_.norm_bias, normed), stream);
  run(linear(normed, weights_.heads, weights_.heads_bias, out), stream);
}

void Agent::decide_backward(mamba::ConstTensorView hidden, mamba::ConstTensorView dout,
                            mamba::TensorView dhidden, mamba::Stream& stream,
                            const mamba::BackwardOptions& options) {
  mamba::Scratch scratch(stream);
  const mamba::TensorView normed = scratch.take(hidden.shape(), DType::f32);
  run(norm_of(hidden, weights_.norm, weights_.norm_bias, normed), stream);
  mamba::LinearGrad heads;
  heads.x = normed;
  heads.weight = weights_.heads;
  heads.dy = dout;
  heads.dx = dhidden;
  heads.dweight = gradients_.heads;
  heads.dbias = gradients_.heads_bias;
  heads.accumulate = options.accumulate;
  run(heads, stream);
  mamba::LayerNormGrad norm;
  norm.x = hidden;
  norm.weight = weights_.norm;
  norm.bias = weights_.norm_bias;
  norm.dy = norm.dx = dhidden;
  norm.dweight = gradients_.norm;
  norm.dbias = gradients_.norm_bias;
  norm.epsilon = norm_epsilon;
  norm.accumulate = options.accumulate;
  run(norm, stream);
}

void Agent::remember_backward(AgentTape& tape, mamba::ConstTensorView dhidden,
                              mamba::StackState* dstate, mamba::Stream& stream,
                              const mamba::BackwardOptions& options) {
  mamba::Scratch scratch(stream);
  const mamba::TensorView dencoded = scratch.take(dhidden.shape(), DType::f32);
  controller_->backward(*tape.controller, dhidden, dstate, dencoded, stream, options);
  mamba::LinearGrad encoder;
  encoder.x = tape.observations;
  encoder.dy = dencoded;
  encoder.dweight = gradients_.encoder;
  encoder.dbias = gradients_.encoder_bias;
  encoder.accumulate = options.accumulate;
  run(encoder, stream);
}

std::vector<mamba::Parameter> Agent::parameters() {
  std::vector<mamba::Parameter> all = controller_->parameters();
  for (mamba::Parameter& parameter : all) parameter.name = "controller." + parameter.name;
  all.push_back({"encoder", weights_.encoder, gradients_.encoder});
  if (weights_.encoder_bias)
    all.push_back({"encoder_bias", weights_.encoder_bias, gradients_.encoder_bias, false});
  all.push_back({"norm", weights_.norm, gradients_.norm, false});
  all.push_back({"norm_bias", weights_.norm_bias, gradients_.norm_bias, false});
  all.push_back({"heads", weights_.heads, gradients_.heads});
  all.push_back({"heads_bias", weights_.heads_bias, gradients_.heads_bias, false});
  return all;
}

}  // namespace mamba_rl
