#include "agent.hpp"

#include <mamba/layer.hpp>

#include <cmath>

#include "initialise.hpp"

namespace mamba_rl {

namespace {

using mamba::DType;
using mamba::Tensor;

constexpr float norm_epsilon = 1e-5f;

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
  norm.epsilon = norm_epsilon;
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
  encoder_ = draw.uniform({width, config.observation},
                          1 / std::sqrt(static_cast<float>(config.observation)), device);
  if (config.controller.published_block) {
    encoder_bias_ = Tensor::zeros({width}, DType::f32, device);
    dencoder_bias_ = Tensor::zeros({width}, DType::f32, device);
  }
  norm_weight_ = ones(width, device);
  norm_bias_ = Tensor::zeros({width}, DType::f32, device);
  heads_ = draw.uniform({outputs, width}, head_bound, device);
  heads_bias_ = Tensor::zeros({outputs}, DType::f32, device);
  dencoder_ = Tensor::zeros(encoder_.shape(), DType::f32, device);
  dnorm_weight_ = Tensor::zeros({width}, DType::f32, device);
  dnorm_bias_ = Tensor::zeros({width}, DType::f32, device);
  dheads_ = Tensor::zeros(heads_.shape(), DType::f32, device);
  dheads_bias_ = Tensor::zeros({outputs}, DType::f32, device);
}

void Agent::remember(mamba::ConstTensorView observations, mamba::StackState& state,
                     mamba::ConstTensorView reset, mamba::TensorView hidden, AgentTape* tape,
                     mamba::Stream& stream) const {
  mamba::Scratch scratch(stream);
  const mamba::TensorView encoded = scratch.take(hidden.shape(), DType::f32);
  run(linear(observations, encoder_, encoder_bias_, encoded), stream);
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
  run(norm_of(hidden, norm_weight_, norm_bias_, normed), stream);
  run(linear(normed, heads_, heads_bias_, out), stream);
}

void Agent::decide_backward(mamba::ConstTensorView hidden, mamba::ConstTensorView dout,
                            mamba::TensorView dhidden, mamba::Stream& stream,
                            const mamba::BackwardOptions& options) {
  mamba::Scratch scratch(stream);
  const mamba::TensorView normed = scratch.take(hidden.shape(), DType::f32);
  run(norm_of(hidden, norm_weight_, norm_bias_, normed), stream);
  mamba::LinearGrad heads;
  heads.x = normed;
  heads.weight = heads_;
  heads.dy = dout;
  heads.dx = dhidden;
  heads.dweight = dheads_;
  heads.dbias = dheads_bias_;
  heads.accumulate = options.accumulate;
  run(heads, stream);
  mamba::LayerNormGrad norm;
  norm.x = hidden;
  norm.weight = norm_weight_;
  norm.bias = norm_bias_;
  norm.dy = norm.dx = dhidden;
  norm.dweight = dnorm_weight_;
  norm.dbias = dnorm_bias_;
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
  encoder.dweight = dencoder_;
  encoder.dbias = dencoder_bias_;
  encoder.accumulate = options.accumulate;
  run(encoder, stream);
}

std::vector<mamba::Parameter> Agent::parameters() {
  std::vector<mamba::Parameter> all = controller_->parameters();
  for (mamba::Parameter& parameter : all) parameter.name = "controller." + parameter.name;
  all.push_back({"encoder", encoder_, dencoder_});
  if (encoder_bias_) all.push_back({"encoder_bias", encoder_bias_, dencoder_bias_, false});
  all.push_back({"norm", norm_weight_, dnorm_weight_, false});
  all.push_back({"norm_bias", norm_bias_, dnorm_bias_, false});
  all.push_back({"heads", heads_, dheads_});
  all.push_back({"heads_bias", heads_bias_, dheads_bias_, false});
  return all;
}

}  // namespace mamba_rl
