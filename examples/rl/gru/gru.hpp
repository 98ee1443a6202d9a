// The gated recurrent unit (Cho et al. 2014) over whole sequences, in the form of cuDNN and
// PyTorch:
//   r = sigmoid(i_r + W_r h + b_r)
//   z = sigmoid(i_z + W_z h + b_z)
//   n = tanh(i_n + r g_n), g_n = W_n h + b_n
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
  // What the gradient needs; both or neither.
  mamba::TensorView before;  // [batch, time, hidden]: h before every step, after its reset
  mamba::TensorView slopes;  // [batch, time, 5 hidden]: of a unit's h after the step, in its i_r,
                             // i_z, i_n and g_n, and in its own h before, which is z
};

// The final state's gradient comes in and the initial state's goes out. Nothing passes a reset (a
// select). With dh the gradient of h after a step, those of the gates are dh times their slopes,
// and that of h before it is dh z + W^T (those of g_r = i_r, g_z = i_z and g_n).
struct GruSequenceGrad {
  mamba::ConstTensorView weight, reset;   // as GruSequence had them
  mamba::ConstTensorView before, slopes;  // as it left them
  mamba::ConstTensorView dy;              // [batch, time, hidden]
  mamba::ConstTensorView dfinal_state;    // [batch, hidden], optional: zeros
  mamba::TensorView dinitial_state;       // the same; may be the same memory; optional
  mamba::TensorView dgates;          // [batch, time, 4 hidden]: of i_r, i_z, i_n (the gradient of
                                     // the inputs) and of g_n
  mamba::TensorView dweight, dbias;  // as weight and bias
  mamba::TensorView dinput_bias;     // [3 hidden], optional: what a bias within the inputs gets
  bool accumulate = false;           // dweight, dbias and dinput_bias are added to
};

void run(const GruSequence& op, mamba::Stream& stream);
void run(const GruSequenceGrad& op, mamba::Stream& stream);

}  // namespace mamba_rl
