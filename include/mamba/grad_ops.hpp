// The gradients of the operations in ops.hpp, as operations of the same kind. dv stands for the
// gradient of one scalar loss with respect to v and has the shape of v.
//
// Gradients of activations are T like the activations, those of weights are f32 whatever the
// weights are, those of states have the dtype of the state. Sums are f32 and in an order that
// depends on shapes and threads only: the same bits run to run on each device. The gradient of a
// weight is left out where its operand is absent, and is added to what is there where `accumulate`
// says so. Gradients of a Matmul are Matmuls, and that of its bias is SumRows.
#pragma once

#include <limits>

#include <mamba/ops.hpp>

namespace MAMBA_EXPORT mamba {

// y[c] = the sum of x[..., c] over everything before the last dimension.
struct SumRows {
  ConstTensorView x;  // [..., channels] T or f32
  TensorView y;       // [channels] f32
  bool accumulate = false;
};

// Of CausalConv. The final state's gradient comes in and the initial state's goes out, so that a
// sequence cut anywhere has the gradients of the whole one. Nothing passes a reset: what is on its
// far side gets a zero from it, whatever is there (a select, never a product).
struct CausalConvGrad {
  ConstTensorView x, weight, bias, initial_state, reset;  // as CausalConv had them; rows == batch
  bool silu = true;
  ConstTensorView dy;            // [batch, time, channels] T
  ConstTensorView dfinal_state;  // [batch, channels, width - 1] T, dense; absent: zeros
  TensorView dinitial_state;     // the same; may be the same memory as dfinal_state; optional
  TensorView dx;                 // [batch, time, channels] T
  TensorView dweight;            // [channels, width] f32, dense; optional
  TensorView dbias;              // [channels] f32; optional
  bool accumulate = false;
};

// Of SelectiveScan. With g = dy silu(z) and a[t] = exp(delta[t] A), from the last step to the first
//   dh[t]  = C[t] g[t] + a[t + 1] dh[t + 1]     (the last: dfinal_state for a[t + 1] dh[t + 1])
//   dC[t]  = sum_c h[t] g[t]
//   dB[t]  = sum_c delta[t] x[t] dh[t]
//   ddelta = sum_n dh (A a h[t - 1] + B x)
//   ddt    = ddelta sigmoid(dt + dt_bias)       (ddelta where that is above 20, or no softplus)
//   dx     = D g + delta sum_n B dh
//   dz     = dy (sum_n C h + D x) silu'(z)
//   dA     = sum_t,b dh delta a h[t - 1];  dA_log = A dA
//   dinitial_state = a[0] dh[0]
// where a[t + 1] dh[t + 1] and a h[t - 1] are zero across a reset (a select). h is recomputed chunk
// by chunk from the states that the forward run left in chunk_states: nothing of size [batch, time,
// channels, d_state] is ever in memory.
struct SelectiveScanGrad {
  ConstTensorView x, dt, A_log, A, B, C, D, z, dt_bias, reset;  // as SelectiveScan had them
  bool softplus = true;                                         // the option too
  ConstTensorView chunk_states;                                 // as that run left it
  std::int64_t chunk_steps = 0;
  ConstTensorView dy;            // [batch, time, channels] T
  ConstTensorView dfinal_state;  // [batch, channels, d_state] f32, dense; absent: zeros
  TensorView dinitial_state;     // the same; may be the same memory as dfinal_state; optional
  TensorView dx, ddt;            // [batch, time, channels] T
  TensorView dz;                 // [batch, time, channels] T; there if and only if z is
  TensorView dB, dC;             // [batch, time, d_state] T
  TensorView dA_log, dA;         // [channels, d_state] f32, dense; optional; of A_log or of A
  TensorView dD, ddt_bias;       // [channels] f32; optional; not without D and dt_bias
  TensorView y;  // [batch, time, channels] T: the forward run's y once more; optional
  bool accumulate = false;
};

// Of Ssd. With a[t] = exp(delta[t] A) per head, from the last step to the first
//   dh[t]  = dy[t] C[t]^T + a[t + 1] dh[t + 1]   (the last: dfinal_state for a[t + 1] dh[t + 1])
//   dC[t]  = sum over the group's heads of h[t]^T dy[t]
//   dB[t]  = sum over the group's heads of delta[t] dh[t]^T x[t]
//   dx[t]  = delta[t] dh[t] B[t] + D dy[t]
//   dlog_a = <dh[t], a[t] h[t - 1]>
//   ddelta = x[t] . dh[t] B[t] + A dlog_a
//   ddt    = ddelta sigmoid(dt + dt_bias) where dt_low < delta < dt_high, 0 elsewhere
//   dA_log = A sum_t,b delta dlog_a;   dD = sum_t,b dy . x;   ddt_bias = sum_t,b ddt
//   dinitial_state = a[0] dh[0]
// where a[t + 1] dh[t + 1] and a[t] h[t - 1] are zero across a reset (a select). h is recomputed
// from the states that the forward run left in chunk_states.
struct SsdGrad {
  ConstTensorView x, dt, A_log, B, C, D, dt_bias, reset;  // as Ssd had them; rows == batch
  std::int64_t groups = 1;                                // the options too
  bool softplus = true;
  float dt_low = 0;
  float dt_high = std::numeric_limits<float>::infinity();
  ConstTensorView chunk_states;  // as that run left it
  std::int64_t chunk_steps = 0;
  ConstTensorView dy;            // [batch, time, channels] T
  ConstTensorView dfinal_state;  // [batch, channels, d_state] f32, dense; absent: zeros
  TensorView dinitial_state;     // the same; may be the same memory as dfinal_state; optional
  TensorView dx;                 // [batch, time, channels] T
  TensorView ddt;                // [batch, time, heads] T
  TensorView dB, dC;             // [batch, time, groups d_state] T
  TensorView dA_log;             // [heads] f32; optional
  TensorView dD, ddt_bias;       // [heads] f32; optional; not without D and dt_bias
  bool accumulate = false;       // dA_log, dD and ddt_bias
};

// Of AddRmsNorm: y and the residual come out of it, so dy and dresidual go in. With r = rsqrt(
// mean(sum^2) + epsilon) and w dy meaning weight dy:
//   dsum = dresidual + r (w dy - sum r^2 mean(sum w dy));  dresidual = dsum;  dx = dsum
struct AddRmsNormGrad {
  ConstTensorView sum;  // [..., channels] f32 or T: the residual afterwards, or x where x was all
  ConstTensorView weight;  // [channels] f32, optional
  ConstTensorView dy;      // [..., channels] T
  TensorView dresidual;    // [..., channels] f32, read and written; optional: zero, not written
  TensorView dx;           // [..., channels] T; may be the same memory as dy; optional
  TensorView dweight;      // [channels] f32; optional; not without weight
  float epsilon = 1e-5f;
  bool accumulate = false;  // dweight
};

// Of LayerNorm.
struct LayerNormGrad {
  ConstTensorView x, weight, bias, z;  // as LayerNorm had them
  ConstTensorView dy;                  // [..., channels] T
  TensorView dx;                       // [..., channels] T; may be the same memory as dy or x
  TensorView dz;                       // [..., channels] T; there if and only if z is
  TensorView dweight, dbias;           // [channels] f32; optional; not without weight and bias
  float epsilon = 1e-5f;
  bool accumulate = false;  // dweight and dbias
};

// Of GatedRmsNorm. With r = rsqrt(mean + epsilon), means over a group:
//   gate_first:  dv = r (w dy - v r^2 mean(v w dy));  dx = dv s;  dz = dv x silu'(z)
//                dweight = sum dy v r
//   otherwise:   g = dy s w;  dx = r (g - x r^2 mean(x g));  dz = dy x r w silu'(z)
//                dweight = sum dy x r s
//   no norm:     dx = dy s;  dz = dy x silu'(z)
struct GatedRmsNormGrad {
  ConstTensorView x, z, weight;  // as GatedRmsNorm had them
  ConstTensorView dy;            // [..., channels] T
  TensorView dx, dz;             // [..., channels] T; dx may be the same memory as dy or x
  TensorView dweight;            // [channels] f32; optional; not without the norm
  std::int64_t groups = 1;
  bool norm = true;
  bool gate_first = true;
  float epsilon = 1e-5f;
  bool accumulate = false;  // dweight
};

// Of Embedding: dtable[ids[b, t], :] is the sum of its dy[b, t, :], in the order of b and then t.
// Without accumulate the rows that no id names become zero. An id out of range: as for Embedding,
// but on CUDA it adds nothing.
struct EmbeddingGrad {
  ConstTensorView ids;  // [batch, time] i32
  ConstTensorView dy;   // [batch, time, d_model] T or f32
  TensorView dtable;    // [vocab, d_model] f32
  bool accumulate = false;
};

void run(const SumRows& op, Stream& stream);
void run(const CausalConvGrad& op, Stream& stream);
void run(const SelectiveScanGrad& op, Stream& stream);
void run(const SsdGrad& op, Stream& stream);
void run(const AddRmsNormGrad& op, Stream& stream);
void run(const LayerNormGrad& op, Stream& stream);
void run(const GatedRmsNormGrad& op, Stream& stream);
void run(const EmbeddingGrad& op, Stream& stream);

// Of y = x weight^T + bias: two products and a sum of rows. What is absent is not computed.
struct LinearGrad {
  ConstTensorView x, weight, dy;
  TensorView dx, dweight, dbias;
  bool accumulate_dx = false;
  bool accumulate = false;  // dweight and dbias
};

inline void run(const LinearGrad& op, Stream& stream) {
  if (op.dx) {
    Matmul input;
    input.x = op.dy;
    input.weight = op.weight;
    input.transpose_weight = true;
    input.y = op.dx;
    input.accumulate = op.accumulate_dx;
    run(input, stream);
  }
  if (op.dweight) {
    Matmul weight;
    weight.x = op.dy;
    weight.weight = op.x;
    weight.transpose_x = weight.transpose_weight = true;
    weight.y = op.dweight;
    weight.accumulate = op.accumulate;
    run(weight, stream);
  }
  if (op.dbias) {
    SumRows bias;
    bias.x = op.dy;
    bias.y = op.dbias;
    bias.accumulate = op.accumulate;
    run(bias, stream);
  }
}

}  // namespace mamba
