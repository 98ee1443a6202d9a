// Mamba layers one after the other, each with a norm before it and a residual stream around it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/layer.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/weights.hpp>

namespace mamba {

struct StackSteps {
  std::vector<StepStates> layers;
  void restore(std::int64_t t, StackState& state, Stream& stream) const;  // see StepStates
};

struct StackOptions : SequenceOptions {
  StackSteps* steps = nullptr;  // receives the states after every step
};

// residual = x;  for each layer: residual += layer(norm(residual));  y = norm_f(residual).
// The residual stream is f32 whatever the dtype. Constant once made, like Layer.
class Stack {
 public:
  // config.n_layer and config.layer say what `weights` must hold; config.norm_epsilon is used.
  Stack(const ModelConfig& config, StackWeights weights);

  std::size_t size() const { return layers_.size(); }
  const Layer& layer(std::size_t i) const { return layers_[i]; }
  const Tensor& norm(std::size_t i) const { return norms_[i]; }  // norm(size()) is norm_f
  DType dtype() const;
  Device device() const { return norms_.back().device(); }

  StackState make_state(std::int64_t batch) const;

  // x [batch, time, d_model] -> y the same, both of dtype(). `state` continues, as for
  // Layer::forward, and as there nothing is touched after an ArgumentError.
  void forward(ConstTensorView x, StackState& state, TensorView y, Stream& stream,
               const StackOptions& options = {}) const;
  Tensor forward(ConstTensorView x, StackState& state) const;
  Tensor forward(ConstTensorView x) const;

  // Throws, in the name of `where`, if `state` is not one of this stack's, of so many rows.
  void check_state(const char* where, const StackState& state, std::int64_t rows) const;

 private:
  void check_call(const ConstTensorView& x, const StackState& state, const TensorView& y,
                  const Stream& stream, const StackOptions& options) const;

  std::vector<Layer> layers_;
  std::vector<Tensor> norms_;
  std::int64_t d_model_;
  float epsilon_;
};

inline void Stack::forward(ConstTensorView x, StackState& state, TensorView y, Stream& stream,
                           const StackOptions& options) const {
  check_call(x, state, y, stream, options);
  if (options.steps != nullptr) options.steps->layers.resize(size());

  Scratch scratch(stream);
  AddRmsNorm norm;
  norm.residual = scratch.take(x.shape(), DType::f32);
  norm.epsilon = epsilon_;
  const TensorView normed = scratch.take(x.shape(), dtype());
  const TensorView branch = scratch.take(x.shape(), dtype());
  copy(x, norm.residual, stream);
  for (std::size_t i = 0; i < size(); ++i) {
    norm.weight = norms_[i];
    norm.y = normed;
    run(norm, stream);
    ForwardOptions layer_options;
    static_cast<SequenceOptions&>(layer_options) = options;
    if (options.steps != nullptr) layer_options.steps = &options.steps->layers[i];
    layers_[i].forward(normed, state.layers[i], branch, stream, layer_options);
    norm.x = branch;  // added by the next norm
  }
  norm.weight = norms_.back();
  norm.y = y;
  run(norm, stream);
}

}  // namespace mamba
