// Mamba layers one after the other, each with a norm before it and a residual stream around it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/detail/constant_weights.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/weights.hpp>

namespace MAMBA_EXPORT mamba {

struct StackSteps {
  std::vector<LayerSteps> layers;
  // See LayerSteps. All layers are checked before the first is touched.
  void restore(std::int64_t t, StackState& state, Stream& stream) const;
};

struct StackOptions : SequenceOptions {
  StackSteps* steps = nullptr;  // receives the states after every step
  StackTape* tape = nullptr;    // receives what backward needs; not with a row map
};

// residual = x;  for each layer: residual += layer(norm(residual));  y = norm_f(residual).
// The residual stream is f32 whatever the dtype. Constant once made, like Layer.
class Stack {
 public:
  // config.n_layer and config.layer say what `weights` must hold; config.norm_epsilon is used.
  Stack(const LanguageModelConfig& config, StackWeights weights);

  std::size_t size() const { return layers_.size(); }
  // A number that is too large is an ArgumentError. Without const: for training, see
  // Layer::weights.
  const Layer& layer(std::size_t i) const;
  Layer& layer(std::size_t i);
  const Tensor& norm(std::size_t i) const;  // norm(size()) is norm_f
  Tensor& norm(std::size_t i);
  DType dtype() const;
  Device device() const { return norm(size()).device(); }

  StackState make_state(std::int64_t batch) const;

  // x [batch, time, d_model] -> y the same, both of dtype(). `state` continues, as for
  // Layer::forward, and as there nothing is touched after an ArgumentError.
  void forward(ConstTensorView x, StackState& state, TensorView y, Stream& stream,
               const StackOptions& options = {}) const;
  Tensor forward(ConstTensorView x, StackState& state) const;
  Tensor forward(ConstTensorView x) const;

  // The gradients of the run on `tape`: see Layer::backward, whose rules hold for the states of all
  // layers, for dx and for `gradients`.
  void backward(StackTape& tape, ConstTensorView dy, StackState* dstate, TensorView dx,
                StackWeights& gradients, Stream& stream, const BackwardOptions& options = {}) const;

 private:
  void check_call(const ConstTensorView& x, const StackState& state, const TensorView& y,
                  Stream& stream, const StackOptions& options) const;
  void check_backward(const StackTape& tape, const ConstTensorView& dy, const StackState* dstate,
                      const TensorView& dx, const StackWeights& gradients,
                      const Stream& stream) const;
  void begin(StackTape& tape, const Shape& shape) const;
  // Where the mixer takes all layers of a single step at once: see detail::Mixer.
  bool step_at_once(const ConstTensorView& x, StackState& state, const TensorView& sum,
                    Stream& stream, const StackOptions& options) const;

  std::vector<Layer> layers_;
  std::vector<Tensor> norms_;
  std::int64_t d_model_;
  float epsilon_;
};

inline void Stack::forward(ConstTensorView x, StackState& state, TensorView y, Stream& stream,
                           const StackOptions& options) const {
  check_call(x, state, y, stream, options);
  if (options.steps != nullptr) options.steps->layers.resize(size());
  if (options.tape != nullptr) begin(*options.tape, x.shape());

  const detail::ConstantWeights constant(stream);
  Scratch scratch(stream);
  const TensorView sums[2] = {scratch.take(x.shape(), DType::f32),
                              scratch.take(x.shape(), DType::f32)};
  const auto sum = [&](std::size_t i) {  // what norm i leaves: the residual of the next one
    return options.tape != nullptr ? options.tape->sums_[i].view() : sums[i % 2];
  };
  AddRmsNorm norm;
  norm.epsilon = epsilon_;
  norm.x = x;
  norm.y = scratch.take(x.shape(), dtype());
  const TensorView branch = scratch.take(x.shape(), dtype());
  const bool done = step_at_once(x, state, sums[0], stream, options);
  if (done) {
    norm.x = {};
    norm.residual = sums[0];
  }
  for (std::size_t i = 0; !done && i < size(); ++i) {
    norm.weight = norms_[i];
    norm.sum = sum(i);
    LayerOptions layer_options;
    static_cast<SequenceOptions&>(layer_options) = options;
    if (options.steps != nullptr) layer_options.steps = &options.steps->layers[i];
    if (options.tape != nullptr) layer_options.tape = &options.tape->layers_[i];
    layers_[i].forward(norm.y, &norm, state.layers[i], branch, stream, layer_options);
    norm.residual = norm.sum;
    norm.x = branch;  // added by the next norm
  }
  norm.weight = norms_.back();
  norm.sum = sum(size());
  norm.y = y;
  run(norm, stream);
  if (options.tape != nullptr) options.tape->filled_ = true;
}

inline void Stack::backward(StackTape& tape, ConstTensorView dy, StackState* dstate, TensorView dx,
                            StackWeights& gradients, Stream& stream,
                            const BackwardOptions& options) const {
  check_backward(tape, dy, dstate, dx, gradients, stream);
  tape.filled_ = false;

  Scratch scratch(stream);
  AddRmsNormGrad norm;
  norm.dresidual = scratch.take(dy.shape(), DType::f32);
  norm.epsilon = epsilon_;
  norm.accumulate = options.accumulate;
  const TensorView dbranch = scratch.take(dy.shape(), dtype());
  const TensorView dnormed = scratch.take(dy.shape(), dtype());
  zero(norm.dresidual, stream);
  norm.sum = tape.sums_.back();
  norm.weight = norms_.back();
  norm.dy = dy;
  norm.dx = dbranch;
  norm.dweight = gradients.norm_f;
  run(norm, stream);
  norm.dy = dnormed;
  for (std::size_t i = size(); i-- > 0;) {
    MambaState* dlayer = dstate != nullptr ? &dstate->layers[i] : nullptr;
    layers_[i].backward(tape.layers_[i], dbranch, dlayer, dnormed, gradients.layers[i], stream,
                        options);
    norm.sum = tape.sums_[i];
    norm.weight = norms_[i];
    norm.dweight = gradients.norms[i];
    run(norm, stream);
  }
  if (dx) copy(norm.dresidual, dx, stream);
}

}  // namespace mamba
