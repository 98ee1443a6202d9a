// Mamba-1 (Gu & Dao 2023, figure 3): one block from x to y, as calls on named operands.
#pragma once

#include <cstdint>

#include <mamba/detail/fused_ops.hpp>
#include <mamba/detail/mixer.hpp>
#include <mamba/ops.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// What a run computes between x and y. Where nothing is kept, some share memory.
struct Mamba1Activations {
  TensorView xz;             // [batch, time, 2 d_inner]
  TensorView u;              // [batch, time, d_inner]: the convolution's y
  TensorView raw_selection;  // [batch, time, dt_rank + 2 d_state]: dt before its projection, B, C
  TensorView selection;      // the same after the norm of norm_dt_b_c
  TensorView dt;             // [batch, time, d_inner]; absent: the scan projects it
  TensorView scanned;        // [batch, time, d_inner]: the scan's y
  TensorView gated;          // [batch, time, d_inner]: what out_proj reads
  TensorView chunk_states;   // see SelectiveScan
  std::int64_t chunk_steps = 0;
};

// One block. Shapes, dtypes and devices have been checked.
struct Mamba1 {
  const LayerConfig& c;  // resolved
  const LayerWeights& w;

  // From x to y, both [batch, time, d_model]; the final states are written on the way.
  void forward(const MixerForward& run, const Mamba1Activations& a, TensorView y,
               Stream& stream) const;
  // `a` has all that forward kept or computed again; a.gated is written here.
  void backward(const MixerBackward& run, const Mamba1Activations& a, Stream& stream) const;

  // The steps of forward: from x to what out_proj reads, and within it the selection.
  void mix(const MixerForward& run, const Mamba1Activations& a, Stream& stream) const;
  void select(const Mamba1Activations& a, Stream& stream) const;
  void normalise(ConstTensorView from, TensorView to, Stream& stream) const;
};

inline void Mamba1::forward(const MixerForward& r, const Mamba1Activations& a, TensorView y,
                            Stream& stream) const {
  mix(r, a, stream);

  Matmul out_proj;
  out_proj.x = a.gated;
  out_proj.weight = w.out_proj;
  out_proj.bias = w.out_proj_bias;
  out_proj.y = y;
  run(out_proj, stream);
  // out_proj has added its bias to padding too.
  if (r.rows.read && (c.use_bias || c.gated_norm)) {
    ZeroRows padding;
    padding.padding = r.rows;
    padding.view = y;
    run(padding, stream);
  }
}

inline void Mamba1::mix(const MixerForward& r, const Mamba1Activations& a, Stream& stream) const {
  // Two branches: x goes through the convolution and the scan, z gates what comes out.
  Matmul in_proj;
  in_proj.x = r.x;
  in_proj.weight = w.in_proj;
  in_proj.bias = w.in_proj_bias;
  in_proj.y = a.xz;

  CausalConv conv;
  conv.x = a.xz.columns(0, c.d_inner);
  conv.weight = w.conv_weight;
  conv.bias = w.conv_bias;
  conv.initial_state = r.initial_state.conv;
  if (r.final_state != nullptr) conv.final_state = r.final_state->conv;
  conv.rows = r.rows;
  conv.reset = r.reset;
  conv.y = a.u;
  if (r.steps != nullptr) conv.step_states = r.steps->conv;
  if (r.norm != nullptr) {
    run(*r.norm, in_proj, conv, stream);
  } else {
    run(in_proj, stream);
    run(conv, stream);
  }

  select(a, stream);

  SelectiveScan scan;
  scan.x = a.u;
  scan.dt = a.dt ? a.dt : a.selection.columns(0, c.dt_rank);
  if (!a.dt) scan.dt_weight = w.dt_proj;
  scan.A_log = w.A_log;
  scan.B = a.selection.columns(c.dt_rank, c.d_state);
  scan.C = a.selection.columns(c.dt_rank + c.d_state, c.d_state);
  scan.D = w.D;
  if (!c.gated_norm) scan.z = a.xz.columns(c.d_inner, c.d_inner);
  scan.dt_bias = w.dt_bias;
  scan.initial_state = r.initial_state.ssm;
  if (r.final_state != nullptr) scan.final_state = r.final_state->ssm;
  scan.rows = r.rows;
  scan.reset = r.reset;
  scan.y = a.scanned;
  scan.chunk_states = a.chunk_states;
  scan.chunk_steps = a.chunk_steps;
  if (r.steps != nullptr) scan.step_states = r.steps->ssm;
  run(scan, stream);
  if (!c.gated_norm) return;  // the scan has gated its y

  LayerNorm norm;
  norm.x = a.scanned;
  norm.weight = w.gated_norm_weight;
  norm.bias = w.gated_norm_bias;
  norm.z = a.xz.columns(c.d_inner, c.d_inner);
  norm.y = a.gated;
  norm.epsilon = c.gated_norm_epsilon;
  run(norm, stream);
}

// The selection: dt, B and C depend on the input.
inline void Mamba1::select(const Mamba1Activations& a, Stream& stream) const {
  Matmul x_proj;
  x_proj.x = a.u;
  x_proj.weight = w.x_proj;
  x_proj.y = a.raw_selection;
  run(x_proj, stream);
  if (c.norm_dt_b_c) {
    std::int64_t first = 0;
    for (const std::int64_t count : {c.dt_rank, c.d_state, c.d_state}) {
      normalise(a.raw_selection.columns(first, count), a.selection.columns(first, count), stream);
      first += count;
    }
  }

  if (!a.dt) return;  // the scan projects it
  Matmul dt_proj;
  dt_proj.x = a.selection.columns(0, c.dt_rank);
  dt_proj.weight = w.dt_proj;
  dt_proj.y = a.dt;
  run(dt_proj, stream);
}

// Falcon-Mamba's weightless norm.
inline void Mamba1::normalise(ConstTensorView from, TensorView to, Stream& stream) const {
  AddRmsNorm norm;
  norm.x = from;
  norm.y = to;
  norm.epsilon = c.norm_dt_b_c_epsilon;
  run(norm, stream);
}

}  // namespace detail
}  // namespace mamba
