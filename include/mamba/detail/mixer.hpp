// What Layer and Stack ask of a mixer: the part of a layer in which architectures differ.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/config.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/stream.hpp>
#include <mamba/tape.hpp>
#include <mamba/weights.hpp>

namespace MAMBA_EXPORT mamba {

class Stack;

namespace detail {

// The operands of one run of a layer, forward, or forward once more before backward.
struct MixerForward {
  const LayerConfig& config;  // resolved
  const LayerWeights& weights;
  ConstTensorView x;                    // [batch, time, d_model]
  const StateTensors& initial_state;    // what the run goes on from
  StateTensors* final_state = nullptr;  // receives the state after the run; may be `initial_state`
  ConstTensorView reset = {};           // [batch, time] i32, may be absent
  RowMap rows = {};                     // may be absent
  LayerSteps* steps = nullptr;          // receives the state after every step
  const AddRmsNorm* norm = nullptr;     // still to be run: x is its y
};

// The operands of the backward run of what `forward` says. What is absent of dx and of `gradients`
// is not computed.
struct MixerBackward {
  const MixerForward& forward;  // without a final state, rows, steps and norm
  bool recompute = false;       // nothing was kept: the run forward has to be repeated
  ConstTensorView dy;           // [batch, time, d_model]
  MambaState* dstate = nullptr;
  TensorView dx;  // [batch, time, d_model]; may be dy
  LayerWeights& gradients;
  bool accumulate = false;  // gradients of weights are added to, not overwritten
};

// Operands have been checked. A mixer keeps nothing of a run: one object serves all layers.
class Mixer {
 public:
  virtual ~Mixer() = default;

  // The tensors that a layer may have, in the order of LayerWeights::each. `config` is resolved.
  // The first is a matrix, whose dtype and device are the layer's, and which every layer has.
  virtual LayerWeightList weights(const LayerConfig& config, DType dtype) const = 0;

  // y [batch, time, d_model] of the layer, and its final states. `kept` receives what backward
  // needs, in an order of the mixer's own; tensors there that are already right are used again.
  // nullptr: nothing is kept.
  virtual void forward(const MixerForward& run, TensorView y, std::vector<Tensor>* kept,
                       Stream& stream) const = 0;
  // `kept` is as forward left it.
  virtual void backward(const MixerBackward& run, std::vector<Tensor>& kept,
                        Stream& stream) const = 0;

  // A single step of all layers of `stack` at once, if the mixer has kernels that take this call:
  // `sum` [batch, 1, d_model] f32 becomes x and all that the layers add to it, and the states go
  // on. If not, false, and nothing is done.
  virtual bool step_at_once(const Stack& stack, float norm_epsilon, const ConstTensorView& x,
                            StackState& state, const TensorView& sum, const RowMap& rows,
                            const ConstTensorView& reset, Stream& stream) const;
};

// The mixer that a configuration names.
const Mixer& mixer_of(const LayerConfig& config);

}  // namespace detail
}  // namespace mamba
