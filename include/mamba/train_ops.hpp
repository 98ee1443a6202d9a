// What training needs beside the gradients (grad_ops.hpp): losses, activations of small networks,
// the distribution of a policy, and the step of the optimiser.
#pragma once

#include <mamba/ops.hpp>

namespace MAMBA_EXPORT mamba {

// Softmax and cross-entropy in one pass, per position:
//   loss    = log(sum_v exp(logits[v])) - logits[target]
//   dlogits = scale (softmax(logits) - onehot(target))
// so dlogits is the gradient of scale times the sum of all losses. Where target < 0 both are zero.
// A target above the vocabulary is an ArgumentError on the CPU; on CUDA its loss is NaN and the
// stream's next synchronize() throws.
struct CrossEntropy {
  ConstTensorView logits;   // [..., vocab] T or f32
  ConstTensorView targets;  // [...] i32, dense
  TensorView loss;          // [...] f32, dense
  TensorView dlogits;       // [..., vocab] T or f32; optional; may be the same memory as logits, in
                            // their dtype and pitches
  float scale = 1;
};

enum class Activation { relu, silu };

// y = relu(x) = max(x, 0), or y = silu(x) = x / (1 + exp(-x)). NaN stays NaN.
struct Activate {
  ConstTensorView x;  // [..., channels] T
  TensorView y;       // [..., channels] T; may be the same memory as x
  Activation function = Activation::silu;
};

// dx = dy relu'(x) or dy silu'(x); relu'(x) is 1 above 0 and 0 elsewhere.
struct ActivateGrad {
  ConstTensorView x;   // [..., channels] T
  ConstTensorView dy;  // [..., channels] T
  TensorView dx;       // [..., channels] T; may be the same memory as x or dy
  Activation function = Activation::silu;
};

// The distribution p = softmax(logits) of each row:
//   log_prob = log p[action]        entropy = -sum_v p[v] log p[v]
// An action out of range: as a target of CrossEntropy, and there is no negative one.
struct Categorical {
  ConstTensorView logits;   // [rows, actions] f32
  ConstTensorView actions;  // [rows] i32; needed for log_prob
  TensorView log_prob;      // [rows] f32; optional
  TensorView entropy;       // [rows] f32; optional
  TensorView log_probs;  // [rows, actions] f32: log p; may be the same memory as logits; optional
};

// dlogits[v] = dlog_prob (onehot(action)[v] - p[v]) - dentropy p[v] (log p[v] + entropy)
struct CategoricalGrad {
  ConstTensorView logits;     // [rows, actions] f32
  ConstTensorView actions;    // [rows] i32; needed with dlog_prob
  ConstTensorView dlog_prob;  // [rows] f32; optional: zeros
  ConstTensorView dentropy;   // [rows] f32; optional: zeros
  TensorView dlogits;         // [rows, actions] f32; may be the same memory as logits
};

// y[0] = sum of x^2, or y[0] + that, within 128 roundings of the exact sum: added up by parts whose
// size is fixed, not one element after the other.
struct SumSquares {
  ConstTensorView x;  // dense f32
  TensorView y;       // [1] f32
  bool accumulate = false;
};

// One step of AdamW (Loshchilov & Hutter 2019) on one tensor:
//   g = clip gradient / loss_scale      clip: 1, or max_norm / norm where that is less;
//   m = beta1 m + (1 - beta1) g         norm = sqrt(squares) / loss_scale
//   v = beta2 v + (1 - beta2) g^2
//   weight -= learning_rate (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
//                            + weight_decay weight)
// If squares is not finite, nothing is changed: the caller sees it there and stops.
struct AdamWStep {
  TensorView weight;         // dense f32, read and written: the master copy
  TensorView stored;         // the same shape, T: becomes weight rounded; optional
  ConstTensorView gradient;  // the same shape, f32
  TensorView m, v;           // the same shape, f32, read and written
  ConstTensorView squares;   // [1] f32: the sum of squares of all gradients; needed if max_norm > 0
  float max_norm = 0;        // 0: gradients are not clipped
  float loss_scale = 1;      // what the gradients are multiplied by; above 0
  float learning_rate = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;
  float weight_decay = 0;
  std::int64_t step = 1;  // counts from 1
};

void run(const CrossEntropy& op, Stream& stream);
void run(const Activate& op, Stream& stream);
void run(const ActivateGrad& op, Stream& stream);
void run(const Categorical& op, Stream& stream);
void run(const CategoricalGrad& op, Stream& stream);
void run(const SumSquares& op, Stream& stream);
void run(const AdamWStep& op, Stream& stream);

}  // namespace mamba
