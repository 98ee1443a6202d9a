// The gated recurrent unit (Cho et al. 2014) over whole sequences, in the form of cuDNN and
// PyTorch:
//   r = sigmoid(i_r + W_r h + b_r)
//   z = sigmoid(i_z + W_z h + b_z)
//   n = tanh(i_n + r (W_n h + b_n))
//   h = (1 - z) n + z h
// where i is the projected input. Operations like those of <mamba/ops.hpp>. All f32.
#pragma once

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace mamba_rl {

struct GruSequence {
  mamba::ConstTensorView inputs;         // [batch, time, 3 hidden]: i_r, i_z, i_n
  mamba::ConstTensorView weight;         // [3 hidden, hidden]: rows of r, z, n
  mamba::ConstTensorView bias;           // [3 hidden]
  mamba::ConstTensorView initial_state;  // [batch, hidden]
  mamba::TensorView final_state;         // the same; may be the same memory as initial_state
  mamba::ConstTensorView reset;  // [batch, time] i32, optional: h becomes zero before a step
  mamba::TensorView y;           // [batch, time, hidden]: h after every step
};

// The final state's gradient comes in and the initial state's goes out. Nothing passes a reset.
// What a step computed is computed again from y, all steps at once.
struct GruSequenceGrad {
  mamba::ConstTensorView inputs, weight, bias, initial_state, reset, y;  // as GruSequence had them
  mamba::ConstTensorView dy;                                             // [batch, time, hidden]
  mamba::ConstTensorView dfinal_state;  // [batch, hidden], optional: zeros
  mamba::TensorView dinitial_state;     // the same; may be the same memory; optional
  mamba::TensorView dinputs;            // [batch, time, 3 hidden]
  mamba::TensorView dweight, dbias;     // as weight and bias
  bool accumulate = false;              // dweight and dbias are added to
};

void run(const GruSequence& op, mamba::Stream& stream);
void run(const GruSequenceGrad& op, mamba::Stream& stream);

}  // namespace mamba_rl
