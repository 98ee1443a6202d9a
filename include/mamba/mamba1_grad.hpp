// The gradients of a Mamba-1 block, from out_proj back to in_proj.
#pragma once

#include <cstdint>

#include <mamba/grad_ops.hpp>
#include <mamba/mamba1.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// One backward run: what the steps hand to each other.
struct Mamba1Backward {
  const LayerConfig& c;
  const LayerWeights& w;
  const Mamba1Activations& a;  // a.gated is written here
  const MixerBackward& r;
  Stream& stream;
  TensorView dxz = {}, du = {}, dselection = {}, ddt = {}, dgated = {};  // as those without d

  TensorView z() const { return a.xz.columns(c.d_inner, c.d_inner); }
  TensorView dz() const { return dxz.columns(c.d_inner, c.d_inner); }

  // The gate's gradient, where a norm stands before it: dgated becomes that of the scan's y.
  void gated_norm() const {
    LayerNorm forward;
    forward.x = a.scanned;
    forward.weight = w.gated_norm_weight;
    forward.bias = w.gated_norm_bias;
    forward.z = z();
    forward.y = a.gated;
    forward.epsilon = c.gated_norm_epsilon;
    run(forward, stream);
    LayerNormGrad norm;
    norm.x = a.scanned;
    norm.weight = w.gated_norm_weight;
    norm.bias = w.gated_norm_bias;
    norm.z = z();
    norm.dy = norm.dx = dgated;
    norm.dz = dz();
    norm.dweight = r.gradients.gated_norm_weight;
    norm.dbias = r.gradients.gated_norm_bias;
    norm.epsilon = c.gated_norm_epsilon;
    norm.accumulate = r.accumulate;
    run(norm, stream);
  }

  void scan() const {
    SelectiveScanGrad scan;
    scan.x = a.u;
    scan.dt = a.dt;
    scan.A_log = w.A_log;
    scan.B = a.selection.columns(c.dt_rank, c.d_state);
    scan.C = a.selection.columns(c.dt_rank + c.d_state, c.d_state);
    scan.D = w.D;
    scan.dt_bias = w.dt_bias;
    scan.reset = r.forward.reset;
    scan.chunk_states = a.chunk_states;
    scan.chunk_steps = a.chunk_steps;
    scan.dy = dgated;
    if (r.dstate != nullptr) scan.dfinal_state = scan.dinitial_state = r.dstate->ssm;
    scan.dx = du;
    scan.ddt = ddt;
    scan.dB = dselection.columns(c.dt_rank, c.d_state);
    scan.dC = dselection.columns(c.dt_rank + c.d_state, c.d_state);
    scan.dA_log = r.gradients.A_log;
    scan.dD = r.gradients.D;
    scan.ddt_bias = r.gradients.dt_bias;
    scan.accumulate = r.accumulate;
    if (!c.gated_norm) {
      scan.z = z();
      scan.dz = dz();
      scan.y = a.gated;
    }
    run(scan, stream);
  }

  // dt, B and C: du gets their share.
  void selection() const {
    LinearGrad dt_proj;
    dt_proj.x = a.selection.columns(0, c.dt_rank);
    dt_proj.weight = w.dt_proj;
    dt_proj.dy = ddt;
    dt_proj.dx = dselection.columns(0, c.dt_rank);
    dt_proj.dweight = r.gradients.dt_proj;
    dt_proj.accumulate = r.accumulate;
    run(dt_proj, stream);
    if (c.norm_dt_b_c) {
      std::int64_t first = 0;
      for (const std::int64_t count : {c.dt_rank, c.d_state, c.d_state}) {
        AddRmsNormGrad norm;
        norm.sum = a.raw_selection.columns(first, count);
        norm.dy = norm.dx = dselection.columns(first, count);
        norm.epsilon = c.norm_dt_b_c_epsilon;
        run(norm, stream);
        first += count;
      }
    }
    LinearGrad x_proj;
    x_proj.x = a.u;
    x_proj.weight = w.x_proj;
    x_proj.dy = dselection;
    x_proj.dx = du;
    x_proj.accumulate_dx = true;
    x_proj.dweight = r.gradients.x_proj;
    x_proj.accumulate = r.accumulate;
    run(x_proj, stream);
  }

  void convolution() const {
    CausalConvGrad conv;
    conv.x = a.xz.columns(0, c.d_inner);
    conv.weight = w.conv_weight;
    conv.bias = w.conv_bias;
    conv.initial_state = r.forward.initial_state.conv;
    conv.reset = r.forward.reset;
    conv.dy = du;
    if (r.dstate != nullptr) conv.dfinal_state = conv.dinitial_state = r.dstate->conv;
    conv.dx = dxz.columns(0, c.d_inner);
    conv.dweight = r.gradients.conv_weight;
    conv.dbias = r.gradients.conv_bias;
    conv.accumulate = r.accumulate;
    run(conv, stream);
  }
};

inline void Mamba1::backward(const MixerBackward& r, const Mamba1Activations& a,
                             Stream& stream) const {
  Scratch scratch(stream);
  const DType dtype = r.dy.dtype();
  Mamba1Backward b{c, w, a, r, stream};
  b.dxz = scratch.take(a.xz.shape(), dtype);
  b.du = scratch.take(a.u.shape(), dtype);
  b.dselection = scratch.take(a.selection.shape(), dtype);
  b.ddt = scratch.take(a.u.shape(), dtype);
  b.dgated = scratch.take(a.u.shape(), dtype);

  LinearGrad out_proj;  // its weight's gradient waits for `gated`
  out_proj.weight = w.out_proj;
  out_proj.dy = r.dy;
  out_proj.dx = b.dgated;
  out_proj.dbias = r.gradients.out_proj_bias;
  out_proj.accumulate = r.accumulate;
  run(out_proj, stream);
  if (c.gated_norm) b.gated_norm();
  b.scan();
  out_proj.dx = {};
  out_proj.dbias = {};
  out_proj.x = a.gated;
  out_proj.dweight = r.gradients.out_proj;
  run(out_proj, stream);
  b.selection();
  b.convolution();

  LinearGrad in_proj;
  in_proj.x = r.forward.x;
  in_proj.weight = w.in_proj;
  in_proj.dy = b.dxz;
  in_proj.dx = r.dx;
  in_proj.dweight = r.gradients.in_proj;
  in_proj.dbias = r.gradients.in_proj_bias;
  in_proj.accumulate = r.accumulate;
  run(in_proj, stream);
}

}  // namespace detail
}  // namespace mamba
