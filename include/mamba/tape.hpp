// What backward needs of a forward run, kept beside the states.
//
//   LayerTape tape;
//   LayerOptions options;
//   options.tape = &tape;
//   layer.forward(x, state, y, stream, options);
//   layer.backward(tape, dy, &dstate, dx, gradients, stream);
//
// A tape belongs to one run: forward fills it, backward empties it. Its memory is made by the first
// run of a size and then used again.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/state.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// Of one layer, per token and in elements of the layer's dtype: d_model + 4 d_inner + dt_rank + 2
// d_state, with norm_dt_b_c dt_rank + 2 d_state more and with gated_norm d_inner more; of Mamba-2
// d_model + 4 d_inner + 4 groups d_state + heads. And d_inner d_state f32 every so many steps
// (Mamba-1: CPU 32, CUDA 16; Mamba-2: 256). Never a state per step.
class LayerTape {
 public:
  // Set before forward: keep only x (d_model) and the state the run began with; backward then runs
  // the layer forward once more.
  bool recompute = false;

  bool filled() const { return layer_ != nullptr; }
  std::int64_t bytes() const;

 private:
  friend class Layer;

  const void* layer_ = nullptr;      // whose run this is; nullptr: none
  Tensor x_, reset_;                 // reset_ absent: there was none
  StateTensors initial_;             // what backward needs of the state that the run began with
  std::vector<Tensor> activations_;  // what the mixer keeps, in its own order
};

// Of a stack: the layers' tapes, and the residual stream before every norm.
class StackTape {
 public:
  bool recompute = false;  // see LayerTape

  bool filled() const { return filled_; }
  std::int64_t bytes() const;

 private:
  friend class Stack;
  bool filled_ = false;
  std::vector<LayerTape> layers_;
  std::vector<Tensor> sums_;  // n_layer + 1 x [batch, time, d_model] f32
};

// Of a language model.
class LanguageModelTape {
 public:
  StackTape stack;  // stack.recompute: see LayerTape

  std::int64_t bytes() const { return stack.bytes() + ids_.bytes() + hidden_.bytes(); }

 private:
  friend class LanguageModel;
  Tensor ids_;     // [batch, time] i32
  Tensor hidden_;  // [batch, time, d_model]: what the head read
};

struct BackwardOptions {
  bool accumulate = false;  // gradients of weights are added to, not overwritten
};

}  // namespace mamba
