// One GRU.
#pragma once

#include "rl/agent/controller.hpp"

namespace mamba_rl {

class GruController : public Controller {
 public:
  // Names and layout of PyTorch's GRU of one layer.
  struct Weights {
    mamba::Tensor weight_ih;  // [3 width, width]: rows of r, z, n
    mamba::Tensor weight_hh;  // [3 width, width]
    mamba::Tensor bias_ih;    // [3 width]
    mamba::Tensor bias_hh;    // [3 width]
  };

  GruController(const ControllerConfig& config, mamba::Device device);

  const Weights& weights() const { return weights_; }

  mamba::StackState make_state(std::int64_t batch) const override;
  std::unique_ptr<ControllerTape> make_tape() const override;
  void forward(mamba::ConstTensorView x, mamba::StackState& state, mamba::ConstTensorView reset,
               mamba::TensorView y, ControllerTape* tape, mamba::Stream& stream) const override;
  void backward(ControllerTape& tape, mamba::ConstTensorView dy, mamba::StackState* dstate,
                mamba::TensorView dx, mamba::Stream& stream,
                const mamba::BackwardOptions& options) override;
  std::vector<mamba::Parameter> parameters() override;

 private:
  std::int64_t width_;
  Weights weights_, gradients_;
};

}  // namespace mamba_rl
