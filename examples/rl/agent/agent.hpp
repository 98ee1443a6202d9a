// An agent: a linear encoder, a controller that remembers, and heads that read a LayerNorm of what
// it says: logits of a policy, and a value.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rl/agent/controller.hpp"

namespace mamba_rl {

struct AgentConfig {
  ControllerConfig controller;
  std::int64_t observation = 0;  // how many numbers are seen
  std::int64_t actions = 0;

  // Everything that a checkpoint must agree in.
  std::string to_string() const;
};

// What the encoder's and the controller's backward need of a forward run.
struct AgentTape {
  mamba::Tensor observations;
  std::unique_ptr<ControllerTape> controller;
};

class Agent {
 public:
  // Beside the controller's.
  struct Weights {
    mamba::Tensor encoder, encoder_bias;  // [width, observation]; the bias with published_block
    mamba::Tensor norm, norm_bias;        // [width]
    mamba::Tensor heads, heads_bias;      // [actions + 1, width]
  };
  static constexpr float norm_epsilon = 1e-5f;

  explicit Agent(const AgentConfig& config, mamba::Device device = mamba::Device::cpu());

  const AgentConfig& config() const { return config_; }
  const Controller& controller() const { return *controller_; }
  mamba::Device device() const { return weights_.encoder.device(); }
  std::int64_t width() const { return config_.controller.width; }
  mamba::StackState make_state(std::int64_t batch) const { return controller_->make_state(batch); }

  // observations [batch, time, observation] -> hidden [batch, time, width]; see
  // Controller::forward.
  void remember(mamba::ConstTensorView observations, mamba::StackState& state,
                mamba::ConstTensorView reset, mamba::TensorView hidden, AgentTape* tape,
                mamba::Stream& stream) const;
  // hidden [n, width] -> out [n, actions + 1]: logits, then the value.
  void decide(mamba::ConstTensorView hidden, mamba::TensorView out, mamba::Stream& stream) const;

  // The gradients of both, from the last to the first. Those of the weights are overwritten, or
  // added to.
  void decide_backward(mamba::ConstTensorView hidden, mamba::ConstTensorView dout,
                       mamba::TensorView dhidden, mamba::Stream& stream,
                       const mamba::BackwardOptions& options = {});
  void remember_backward(AgentTape& tape, mamba::ConstTensorView dhidden, mamba::StackState* dstate,
                         mamba::Stream& stream, const mamba::BackwardOptions& options = {});

  const Weights& weights() const { return weights_; }
  std::vector<mamba::Parameter> parameters();

 private:
  AgentConfig config_;
  std::unique_ptr<Controller> controller_;
  Weights weights_, gradients_;
};

}  // namespace mamba_rl
