// Mamba-2 (Dao & Gu 2024, figure 6): one block from x to y, as calls on named operands.
#pragma once

#include <cstdint>

#include <mamba/detail/fused_ops.hpp>
#include <mamba/detail/mixer.hpp>
#include <mamba/ops.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// What a run computes between x and y. Where nothing is kept, some share memory.
struct Mamba2Activations {
  TensorView projected;     // [batch, time, d_inner + conv_channels + heads]: z, x, B, C, dt
  TensorView convolved;     // [batch, time, conv_channels]: x, B, C
  TensorView scanned;       // [batch, time, d_inner]: y of Ssd
  TensorView gated;         // [batch, time, d_inner]: what out_proj reads
  TensorView chunk_states;  // see Ssd
  std::int64_t chunk_steps = 0;
};

// One block. Shapes, dtypes and devices have been checked.
struct Mamba2 {
  const LayerConfig& c;  // resolved
  const LayerWeights& w;

  // From x to y, both [batch, time, d_model]; the final states are written on the way.
  void forward(const MixerForward& run, const Mamba2Activations& a, TensorView y,
               Stream& stream) const;
  // `a` has all that forward kept or computed again; a.gated is written here.
  void backward(const MixerBackward& run, const Mamba2Activations& a, Stream& stream) const;

  // The steps of forward: from x to the y of Ssd, which is set up apart, and its norm and gate.
  void mix(const MixerForward& run, const Mamba2Activations& a, Stream& stream) const;
  Ssd ssd(const Mamba2Activations& a) const;
  void gate(const Mamba2Activations& a, Stream& stream) const;

  // Columns of a.projected, and of its gradient.
  TensorView z(const TensorView& of) const { return of.columns(0, c.d_inner); }
  TensorView xBC(const TensorView& of) const { return of.columns(c.d_inner, c.conv_channels()); }
  TensorView dt(const TensorView& of) const {
    return of.columns(c.d_inner + c.conv_channels(), c.heads());
  }
  // Columns of a.convolved, and of its gradient.
  TensorView x(const TensorView& of) const { return of.columns(0, c.d_inner); }
  TensorView B(const TensorView& of) const { return of.columns(c.d_inner, c.groups * c.d_state); }
  TensorView C(const TensorView& of) const {
    return of.columns(c.d_inner + c.groups * c.d_state, c.groups * c.d_state);
  }
};

inline void Mamba2::forward(const MixerForward& r, const Mamba2Activations& a, TensorView y,
                            Stream& stream) const {
  mix(r, a, stream);
  gate(a, stream);

  Matmul out_proj;
  out_proj.x = a.gated;
  out_proj.weight = w.out_proj;
  out_proj.bias = w.out_proj_bias;
  out_proj.y = y;
  run(out_proj, stream);
  if (r.rows.read) {  // padding has been gated with whatever its z is
    ZeroRows padding;
    padding.padding = r.rows;
    padding.view = y;
    run(padding, stream);
  }
}

inline void Mamba2::mix(const MixerForward& r, const Mamba2Activations& a, Stream& stream) const {
  // One product for all: z gates what comes out, and only x, B and C are convolved.
  Matmul in_proj;
  in_proj.x = r.x;
  in_proj.weight = w.in_proj;
  in_proj.bias = w.in_proj_bias;
  in_proj.y = a.projected;

  CausalConv conv;
  conv.x = xBC(a.projected);
  conv.weight = w.conv_weight;
  conv.bias = w.conv_bias;
  conv.initial_state = r.initial_state.conv;
  if (r.final_state != nullptr) conv.final_state = r.final_state->conv;
  conv.rows = r.rows;
  conv.reset = r.reset;
  conv.y = a.convolved;
  if (r.steps != nullptr) conv.step_states = r.steps->conv;
  if (r.norm != nullptr) {
    run(*r.norm, in_proj, conv, stream);
  } else {
    run(in_proj, stream);
    run(conv, stream);
  }

  Ssd scan = ssd(a);
  scan.initial_state = r.initial_state.ssm;
  if (r.final_state != nullptr) scan.final_state = r.final_state->ssm;
  scan.rows = r.rows;
  scan.reset = r.reset;
  if (r.steps != nullptr) scan.step_states = r.steps->ssm;
  run(scan, stream);
}

// All but the memory.
inline Ssd Mamba2::ssd(const Mamba2Activations& a) const {
  Ssd scan;
  scan.x = x(a.convolved);
  scan.dt = dt(a.projected);
  scan.A_log = w.A_log;
  scan.B = B(a.convolved);
  scan.C = C(a.convolved);
  scan.D = w.D;
  scan.dt_bias = w.dt_bias;
  scan.y = a.scanned;
  scan.groups = c.groups;
  scan.dt_low = c.dt_low;
  scan.dt_high = c.dt_high;
  scan.chunk_states = a.chunk_states;
  scan.chunk_steps = a.chunk_steps;
  return scan;
}

inline void Mamba2::gate(const Mamba2Activations& a, Stream& stream) const {
  GatedRmsNorm norm;
  norm.x = a.scanned;
  norm.z = z(a.projected);
  norm.weight = w.gated_norm_weight;
  norm.y = a.gated;
  norm.groups = c.groups;
  norm.norm = c.rmsnorm;
  norm.gate_first = !c.norm_before_gate;
  norm.epsilon = c.gated_norm_epsilon;
  run(norm, stream);
}

}  // namespace detail
}  // namespace mamba
