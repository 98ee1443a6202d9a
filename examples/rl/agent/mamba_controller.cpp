#include "rl/agent/mamba_controller.hpp"

#include <algorithm>

#include "rl/ppo/ppo.hpp"

namespace mamba_rl {

namespace {

struct MambaTape : ControllerTape {
  std::vector<mamba::LayerTape> layers;
};

mamba::LayerConfig layer_config(const ControllerConfig& config) {
  mamba::LayerConfig layer;
  layer.d_model = config.width;
  layer.dt_min = 1 / config.memory;
  const bool mamba2 = config.kind == "mamba2";
  if (mamba2) {
    layer.mixer = mamba::MixerKind::mamba2;
    layer.dt_min /= 8;  // A is from 1 to 16 there, and the slowest of a channel's A 1 in Mamba-1
    layer.d_state = 16;
    layer.head_dim = config.width % 2 == 0 ? 4 : 2;  // many memories: each head has one
  }
  layer.dt_floor = std::min(layer.dt_floor, layer.dt_min);
  if (config.published_block) return layer;
  layer.use_conv_bias = false;
  layer.initial_D = 0;
  layer.norm_before_gate = mamba2;
  layer.norm_dt_b_c = layer.gated_norm = !mamba2;
  return layer;
}

}  // namespace

MambaController::MambaController(const ControllerConfig& config, mamba::Device device) {
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::uint64_t seed = config.seed + static_cast<std::uint64_t>(i);
    layers_.push_back(mamba::Layer::random(layer_config(config), seed, mamba::DType::f32, device));
    gradients_.push_back(mamba::zero_gradients(layers_.back().config(), device));
  }
}

mamba::StackState MambaController::make_state(std::int64_t batch) const {
  mamba::StackState state;
  for (const mamba::Layer& layer : layers_) state.layers.push_back(layer.make_state(batch));
  return state;
}

std::unique_ptr<ControllerTape> MambaController::make_tape() const {
  return std::make_unique<MambaTape>();
}

void MambaController::forward(mamba::ConstTensorView x, mamba::StackState& state,
                              mamba::ConstTensorView reset, mamba::TensorView y,
                              ControllerTape* tape, mamba::Stream& stream) const {
  auto* kept = static_cast<MambaTape*>(tape);
  if (kept != nullptr) kept->layers.resize(layers_.size());
  mamba::Scratch scratch(stream);
  mamba::TensorView branch;
  if (layers_.size() > 1) branch = scratch.take(x.shape(), mamba::DType::f32);
  for (std::size_t i = 0; i < layers_.size(); ++i) {  // y = x + layer(x), then y += layer(y)
    mamba::LayerOptions options;
    options.reset = reset;
    if (kept != nullptr) options.tape = &kept->layers[i];
    const bool first = i == 0;
    layers_[i].forward(first ? x : y, state.layers[i], first ? y : branch, stream, options);
    Add residual;
    residual.x = first ? x : branch;
    residual.y = y;
    run(residual, stream);
  }
}

void MambaController::backward(ControllerTape& tape, mamba::ConstTensorView dy,
                               mamba::StackState* dstate, mamba::TensorView dx,
                               mamba::Stream& stream, const mamba::BackwardOptions& options) {
  auto& kept = static_cast<MambaTape&>(tape);
  mamba::Scratch scratch(stream);
  mamba::TensorView branch;
  if (layers_.size() > 1) branch = scratch.take(dy.shape(), mamba::DType::f32);
  for (std::size_t i = layers_.size(); i-- > 0;) {  // as in forward
    const bool last = i + 1 == layers_.size();
    layers_[i].backward(kept.layers[i], last ? dy : dx,
                        dstate != nullptr ? &dstate->layers[i] : nullptr, last ? dx : branch,
                        gradients_[i], stream, options);
    Add residual;
    residual.x = last ? dy : branch;
    residual.y = dx;
    run(residual, stream);
  }
}

std::vector<mamba::Parameter> MambaController::parameters() {
  std::vector<mamba::Parameter> all;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    for (mamba::Parameter& parameter : mamba::parameters(layers_[i], gradients_[i])) {
      parameter.name = "layers." + std::to_string(i) + "." + parameter.name;
      all.push_back(std::move(parameter));
    }
  }
  return all;
}

}  // namespace mamba_rl
