// One layer: weights inside, memory outside. What it computes: mamba1.hpp and mamba2.hpp.
#pragma once

#include <cstdint>
#include <utility>

#include <mamba/config.hpp>
#include <mamba/detail/constant_weights.hpp>
#include <mamba/detail/mixer.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/tape.hpp>
#include <mamba/weights.hpp>

namespace MAMBA_EXPORT mamba {

// What a forward call may be told beside its operands. All absent by default.
struct SequenceOptions {
  ConstTensorView reset;  // [batch, time] i32; non-zero: x[b, t] begins a new sequence
  RowMap rows;            // [batch] into a larger state: see RowMap
};

struct LayerOptions : SequenceOptions {
  LayerSteps* steps = nullptr;  // receives the state after every step
  LayerTape* tape = nullptr;    // receives what backward needs; not with a row map
};

// Constant once made: what changes is in the caller's hands. Any number of threads may call forward
// at once, each with its own stream and state. Shapes, dtypes and devices are checked before any
// work; after an ArgumentError state and outputs are as they were.
class Layer {
 public:
  // Takes the weights, whose shapes, dtypes (matrices: all of the first one's) and device are
  // checked.
  Layer(const LayerConfig& config, LayerWeights weights);
  // Fresh weights by the published recipe.
  static Layer random(const LayerConfig& config, std::uint64_t seed, DType dtype = DType::f32,
                      Device device = Device::cpu());

  const LayerConfig& config() const { return config_; }  // resolved
  const LayerWeights& weights() const { return weights_; }
  // For training. Values may change between calls, never shapes, dtypes or places.
  LayerWeights& weights() { return weights_; }
  DType dtype() const { return (weights_.*matrix_).dtype(); }
  Device device() const { return (weights_.*matrix_).device(); }

  // Nothing seen yet, for `batch` sequences.
  MambaState make_state(std::int64_t batch) const {
    return MambaState(config_, batch, dtype(), device());
  }

  // Continues from `state` for the steps of x and leaves in it what was remembered. Any time >= 0:
  // a whole sequence, a piece of one, a single step. x [batch, time, d_model] -> y the same, both
  // of dtype(). Allocates nothing after its first call of a size, waits for nothing.
  void forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
               const LayerOptions& options = {}) const;
  // The same into a new tensor, on the default stream, done when it returns. Without a state: from
  // zero.
  Tensor forward(ConstTensorView x, MambaState& state) const;
  Tensor forward(ConstTensorView x) const;

  // The gradients of the run on `tape`, which is empty afterwards. dy [batch, time, d_model] is
  // that of y. `dstate` comes in as that of the final state and goes out as that of the initial
  // one, so pieces of a sequence run backward in reverse order hand it on; zero it, or give
  // nullptr, to stop there (truncated backpropagation). dx may be absent, or be dy. `gradients` is
  // of this layer's shapes, all f32 (zero_gradients); what is absent in it is not computed. A tape
  // without a run, or of another layer, is an ArgumentError.
  void backward(LayerTape& tape, ConstTensorView dy, MambaState* dstate, TensorView dx,
                LayerWeights& gradients, Stream& stream, const BackwardOptions& options = {}) const;

 private:
  friend class Stack;  // which hands a layer the norm before it

  // x is norm->y, computed first: for a single step a device may do both in one pass. Without a
  // norm, x is there.
  void forward(ConstTensorView x, const AddRmsNorm* norm, MambaState& state, TensorView y,
               Stream& stream, const LayerOptions& options) const;
  void check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                  Stream& stream, const LayerOptions& options) const;
  void check_tape(const char* where, const LayerTape& tape) const;
  void check_backward(const LayerTape& tape, const ConstTensorView& dy, const MambaState* dstate,
                      const TensorView& dx, const LayerWeights& gradients,
                      const Stream& stream) const;
  // Puts x on the tape, computing the norm into it if there is one, and returns it from there. The
  // tape is empty until the run is done.
  ConstTensorView begin(LayerTape& tape, const ConstTensorView& x, const AddRmsNorm* norm,
                        const MambaState& state, Stream& stream, const LayerOptions& options) const;

  LayerConfig config_;
  LayerWeights weights_;
  const detail::Mixer* mixer_;        // that of the config
  detail::LayerWeightMember matrix_;  // the mixer's first weight
};

inline void Layer::forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
                           const LayerOptions& options) const {
  forward(x, nullptr, state, y, stream, options);
}

inline void Layer::forward(ConstTensorView x, const AddRmsNorm* norm, MambaState& state,
                           TensorView y, Stream& stream, const LayerOptions& options) const {
  check_call(x, state, y, stream, options);
  if (options.steps != nullptr) options.steps->prepare(state, x.dim(0), x.dim(1));
  LayerTape* const tape = options.tape;
  if (tape != nullptr) {
    x = begin(*tape, x, std::exchange(norm, nullptr), state, stream, options);
  }
  if (x.count() != 0 || options.rows.read) {  // else nothing to see, nothing to move
    const detail::ConstantWeights constant(stream);
    mixer_->forward(
        {config_, weights_, x, state, &state, options.reset, options.rows, options.steps, norm}, y,
        tape != nullptr && !tape->recompute ? &tape->activations_ : nullptr, stream);
  }
  if (tape != nullptr) tape->layer_ = (weights_.*matrix_).view().data();
}

inline void Layer::backward(LayerTape& tape, ConstTensorView dy, MambaState* dstate, TensorView dx,
                            LayerWeights& gradients, Stream& stream,
                            const BackwardOptions& options) const {
  check_backward(tape, dy, dstate, dx, gradients, stream);
  const detail::MixerForward forward{config_,       weights_, tape.x_,
                                     tape.initial_, nullptr,  tape.reset_};
  mixer_->backward({forward, tape.recompute, dy, dstate, dx, gradients, options.accumulate},
                   tape.activations_, stream);
  tape.layer_ = nullptr;
}

}  // namespace mamba
