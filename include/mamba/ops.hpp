// What can be computed: one struct of named operands per operation, its mathematics in the comment,
// and one verb. run(op, stream) checks every operand, then computes on the stream's device.
//
// Set operands by name:
//
//   CausalConv conv;
//   conv.x = xz.columns(0, d_inner);
//   conv.weight = weights.conv_weight;
//   conv.y = activated;
//   run(conv, stream);
//
// T is the storage type (f32, bf16 or f16), one for all operands marked T; every sum and every
// state of a recurrence is f32. An operand called optional may be left absent. Sizes may be zero.
// Outputs must not overlap inputs except where it says so: "may be the same memory" means the same
// elements in the same dtype and pitches, which is checked. A wrong operand is an ArgumentError
// before any work.
#pragma once

#include <cstdint>
#include <limits>

#include <mamba/row_map.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

// y = x weight^T + bias, or y + x weight^T + bias. Its own gradients are products too:
//   dx = dy weight      x = dy, weight with transpose_weight (it is [in, out] of this product)
//   dweight = dy^T x    x = dy and weight = x, both transposed: summed over all of their rows
struct Matmul {
  ConstTensorView x;       // [..., in] T; with transpose_x: [..., out rows of y] T, summed over ...
  ConstTensorView weight;  // [out, in] T; transposed [in, out], and with transpose_x [..., out]
  ConstTensorView bias;    // [out] T, optional
  TensorView y;            // [..., out] T or f32; with transpose_x [out rows of y, out]
  bool transpose_weight = false;
  bool transpose_x = false;  // only with transpose_weight
  bool accumulate = false;   // y is added to, in f32 before it is rounded
};

// Depthwise causal convolution, its memory an explicit state (Gu & Dao 2023, section 3.4):
//   y[b, t, c] = act(bias[c] + sum_k weight[c, k] x[b, t - (width - 1) + k, c])
// where x before t = 0 is the initial state. act is SiLU, or the identity. Any width >= 1.
// reset[b, t] != 0 makes everything before step t zero, for step t and all after it.
struct CausalConv {
  ConstTensorView x;              // [batch, time, channels] T
  ConstTensorView weight;         // [channels, width] f32
  ConstTensorView bias;           // [channels] f32, optional
  ConstTensorView initial_state;  // [rows, channels, width - 1] T, oldest first; absent: zeros
  TensorView final_state;         // the same; may be the same memory as initial_state; optional
  RowMap rows;                    // absent: rows == batch
  ConstTensorView reset;          // [batch, time] i32, optional
  TensorView step_states;         // [batch, time, channels, width - 1] T, optional: after each step
  TensorView y;                   // [batch, time, channels] T
  bool silu = true;
};

// The selective scan (Gu & Dao 2023, algorithm 2), its memory an explicit state. Per batch row and
// channel c, over states n:
//   delta = softplus(dt[t, c] + dt_bias[c])   softplus(v) = v above 20, else log1p(exp(v)); or none
//   h[n]  = exp(delta A[c, n]) h[n] + delta B[t, n] x[t, c]   A = -exp(A_log), or as it is given
//   y     = (sum_n C[t, n] h[n] + D[c] x[t, c]) silu(z[t, c])
// h starts as the initial state and ends as the final state. d_state is 1 to 256.
// reset[b, t] != 0 sets h to zero (whatever it was) before step t. With the optional dt_weight the
// dt of the formula is dt dt_weight^T, which a single step need not round to T.
//
// Exactly one of A_log and A is given. A may have any sign, and so may delta without softplus.
// Where delta A > 0 the state grows, which nothing limits: beyond f32 it is infinite.
struct SelectiveScan {
  ConstTensorView x;              // [batch, time, channels] T
  ConstTensorView dt;             // [batch, time, channels] T; with dt_weight [.., .., dt_rank]
  ConstTensorView dt_weight;      // [channels, dt_rank] T, optional
  ConstTensorView A_log;          // [channels, d_state] f32; or
  ConstTensorView A;              // [channels, d_state] f32
  ConstTensorView B;              // [batch, time, d_state] T
  ConstTensorView C;              // [batch, time, d_state] T
  ConstTensorView D;              // [channels] f32, optional
  ConstTensorView z;              // [batch, time, channels] T, optional
  ConstTensorView dt_bias;        // [channels] f32, optional
  ConstTensorView initial_state;  // [rows, channels, d_state] f32; absent: zeros
  TensorView final_state;         // the same; may be the same memory as initial_state; optional
  RowMap rows;                    // absent: rows == batch
  ConstTensorView reset;          // [batch, time] i32, optional
  TensorView step_states;  // [batch, time, channels, d_state] f32: h after each step; optional
  // [batch, time, channels] T; may be the same memory as x, z, or dt (without dt_weight).
  TensorView y;
  bool softplus = true;  // false: delta = dt + dt_bias
  // For SelectiveScanGrad: h as it was handed to steps 0, chunk_steps, 2 chunk_steps, ..., before
  // any reset at that step. [batch, ceil(time / chunk_steps), channels, d_state] f32, dense;
  // optional.
  TensorView chunk_states;
  // At least 1 where chunk_states is there. CUDA takes a single length, which its error names.
  std::int64_t chunk_steps = 0;
};

// The recurrence of Mamba-2 (Dao & Gu 2024, "Transformers are SSMs", structured state space
// duality), its memory an explicit state. channels = heads head_dim, head by head, and every group
// of heads / groups neighbouring heads shares B and C. Per batch row, head k of group g, channel p
// of the head and state n:
//   delta = clamp(softplus(dt[t, k] + dt_bias[k]), dt_low, dt_high)     softplus as above, or none
//   h[p, n] = exp(delta A[k]) h[p, n] + delta B[t, g, n] x[t, k, p]     A = -exp(A_log)
//   y[p]    = sum_n C[t, g, n] h[p, n] + D[k] x[t, k, p]
// h starts as the initial state and ends as the final state. head_dim and d_state are 1 to 256;
// groups divides heads. reset[b, t] != 0 sets h to zero (whatever it was) before step t.
//
// Heads and groups are not dimensions of the views but lie in the last one, as channels do: x, B
// and C are column ranges of one convolved tensor, which a view with two pitches can say, and a
// state after every step has no fifth dimension. A state [rows, channels, d_state] is the memory of
// the published [rows, heads, head_dim, d_state].
//
// A few steps are walked one by one, many are products of matrices over chunks; so a sequence cut
// elsewhere may differ in its last bits. With step_states all steps are walked one by one, which
// takes longer where they are many, and y may differ in its last bits from that without.
struct Ssd {
  ConstTensorView x;              // [batch, time, channels] T
  ConstTensorView dt;             // [batch, time, heads] T
  ConstTensorView A_log;          // [heads] f32
  ConstTensorView B;              // [batch, time, groups d_state] T
  ConstTensorView C;              // [batch, time, groups d_state] T
  ConstTensorView D;              // [heads] f32, optional
  ConstTensorView dt_bias;        // [heads] f32, optional
  ConstTensorView initial_state;  // [rows, channels, d_state] f32; absent: zeros
  TensorView final_state;         // the same; may be the same memory as initial_state; optional
  RowMap rows;                    // absent: rows == batch
  ConstTensorView reset;          // [batch, time] i32, optional
  TensorView step_states;  // [batch, time, channels, d_state] f32: h after each step; optional
  TensorView y;            // [batch, time, channels] T; may be the same memory as x
  std::int64_t groups = 1;
  bool softplus = true;  // false: delta = clamp(dt + dt_bias, dt_low, dt_high)
  float dt_low = 0;      // at least 0
  float dt_high = std::numeric_limits<float>::infinity();
  // For SsdGrad: h as it was handed to steps 0, chunk_steps, 2 chunk_steps, ..., before any reset
  // at that step. [batch, ceil(time / chunk_steps), channels, d_state] f32, dense; optional.
  TensorView chunk_states;
  std::int64_t chunk_steps = 0;  // at least 1 where chunk_states is there
};

// The residual stream and its norm in one pass (Zhang & Sennrich 2019, pre-norm form):
//   sum = residual + x;  residual = sum;  y = sum rsqrt(mean(sum^2) + epsilon) weight
// The mean is over the last dimension. An absent residual or x counts as zero, but not both. With
// the optional `sum` (which may be the residual's memory) the sum goes there, whatever is absent,
// and the residual is only read.
struct AddRmsNorm {
  ConstTensorView x;       // [..., channels] T, optional
  TensorView residual;     // [..., channels] f32, read and written; optional
  TensorView sum;          // [..., channels] f32, optional
  ConstTensorView weight;  // [channels] f32, optional: ones
  TensorView y;            // [..., channels] T; may be the same memory as x
  float epsilon = 1e-5f;
};

// The norm of Ba, Kiros & Hinton 2016 with an optional gate (the order of Mamba-2's, norm first):
//   y = ((x - mean(x)) rsqrt(var(x) + epsilon) weight + bias) silu(z)
// mean and variance (that of the values, not an estimate) are over the last dimension.
struct LayerNorm {
  ConstTensorView x;       // [..., channels] T
  ConstTensorView weight;  // [channels] f32, optional: ones
  ConstTensorView bias;    // [channels] f32, optional: zeros
  ConstTensorView z;       // [..., channels] T, optional: no gate
  TensorView y;            // [..., channels] T; may be the same memory as x or z
  float epsilon = 1e-5f;
};

// The norm of Mamba-2 with its gate (Dao & Gu 2024), over each of `groups` runs of as many
// channels. With s = silu(z):
//   gate_first:  v = x s;  y = v rsqrt(mean(v^2) + epsilon) weight
//   otherwise:             y = x rsqrt(mean(x^2) + epsilon) weight s
// or, without the norm,    y = x s
struct GatedRmsNorm {
  ConstTensorView x;        // [..., channels] T
  ConstTensorView z;        // [..., channels] T
  ConstTensorView weight;   // [channels] f32; there if and only if the norm is
  TensorView y;             // [..., channels] T; may be the same memory as x or z
  std::int64_t groups = 1;  // divides channels
  bool norm = true;
  bool gate_first = true;
  float epsilon = 1e-5f;
};

// y[..., :] = table[ids[...], :]. An id outside the table is an ArgumentError on the CPU; on CUDA
// its row becomes NaN and the stream's next synchronize() throws.
struct Embedding {
  ConstTensorView ids;    // [batch, time] i32
  ConstTensorView table;  // [vocab, d_model] T
  TensorView y;           // [batch, time, d_model] T or f32
};

// One token id per row of logits.
//   1. Where seen != 0, a positive logit is divided by repetition_penalty, and any other multiplied
//      by it (Keskar et al. 2019; once per distinct token).
//   2. temperature == 0: the largest logit, the lowest id among equals.
//   3. Otherwise p = softmax(logits / temperature), over what top_k, then top_p, then min_p leave:
//      top_k  the k largest (0: all);
//      top_p  the fewest largest whose probabilities sum to at least top_p (1: all);
//      min_p  those with at least min_p times the probability of the largest (0: all).
//      Equals are ordered by id, lowest first. The token is drawn from p with one uniform number,
//      Philox4x32-10 (Salmon et al. 2011) keyed by seed[b] at counter draws[b], which then grows by
//      one.
// The chosen id is counted in seen (+ 1; any value but 0 is seen, and negative ones stay). A NaN
// logit counts as minus infinity; a row without a finite maximum is an ArgumentError on the CPU and
// id -1 with the stream's flag set on CUDA.
//
// With `rows` the operands are those of a larger batch, of which only the rows that it names, each
// at most once, are worked on; on CUDA a row out of range is left out, and the stream's next
// synchronize() throws. An option may have a value for each row in place of one for all.
struct Sample {
  ConstTensorView rows;    // [n] i32, optional: all
  ConstTensorView logits;  // [batch, vocab] f32
  // [batch, 2] i32: low and high half of a 64-bit seed; needed if temperature > 0.
  ConstTensorView seed;
  TensorView draws;  // [batch] i32, read and written; needed if temperature > 0
  TensorView seen;   // [batch, vocab] i32, read and written; needed if repetition_penalty != 1
  TensorView ids;    // [batch] i32
  float temperature = 0;
  std::int64_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  // [batch], each optional. On CUDA a value out of the option's range counts as one within.
  ConstTensorView temperatures;          // f32; seed and draws are then needed
  ConstTensorView top_ks;                // i32
  ConstTensorView top_ps;                // f32
  ConstTensorView min_ps;                // f32
  ConstTensorView repetition_penalties;  // f32; seen is then needed
};

// to[to_rows[i]] = from[from_rows[i]], whole rows (everything below the first dimension); an absent
// list counts i = 0, 1, 2, .... For i in 0 .. n - 1, n being the length of a list that is there, or
// else of both tensors. `to_rows` may not name a row twice, and `from` and `to` must not overlap,
// which is checked. On CUDA a source row out of range gives NaN, a target row out of range is left
// out, and the stream's next synchronize() throws.
struct CopyRows {
  ConstTensorView from;       // [rows, ...] any dtype, dense
  ConstTensorView from_rows;  // [n] i32, optional
  TensorView to;              // [rows, ...] of from's dtype, dense
  ConstTensorView to_rows;    // [n] i32, optional
};

// view[b] = 0, whatever was there, for every row b with mask[b] != 0, or whose entry in the row map
// is padding.
struct ZeroRows {
  ConstTensorView mask;  // [rows] i32; this or
  RowMap padding;        // [rows]
  TensorView view;       // [rows, ...] any dtype
};

void run(const Matmul& op, Stream& stream);
void run(const CausalConv& op, Stream& stream);
void run(const SelectiveScan& op, Stream& stream);
void run(const Ssd& op, Stream& stream);
void run(const AddRmsNorm& op, Stream& stream);
void run(const LayerNorm& op, Stream& stream);
void run(const GatedRmsNorm& op, Stream& stream);
void run(const Embedding& op, Stream& stream);
void run(const Sample& op, Stream& stream);
void run(const CopyRows& op, Stream& stream);
void run(const ZeroRows& op, Stream& stream);

}  // namespace mamba
