// Mamba layers, each added to what it reads.
#pragma once

#include <mamba/layer.hpp>

#include <vector>

#include "rl/agent/controller.hpp"

namespace mamba_rl {

class MambaController : public Controller {
 public:
  MambaController(const ControllerConfig& config, mamba::Device device);

  const std::vector<mamba::Layer>& layers() const { return layers_; }

  mamba::StackState make_state(std::int64_t batch) const override;
  std::unique_ptr<ControllerTape> make_tape() const override;
  void forward(mamba::ConstTensorView x, mamba::StackState& state, mamba::ConstTensorView reset,
               mamba::TensorView y, ControllerTape* tape, mamba::Stream& stream) const override;
  void backward(ControllerTape& tape, mamba::ConstTensorView dy, mamba::StackState* dstate,
                mamba::TensorView dx, mamba::Stream& stream,
                const mamba::BackwardOptions& options) override;
  std::vector<mamba::Parameter> parameters() override;

 private:
  std::vector<mamba::Layer> layers_;
  std::vector<mamba::LayerWeights> gradients_;
};

}  // namespace mamba_rl
