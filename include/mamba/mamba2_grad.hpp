// The gradients of a Mamba-2 block, from out_proj back to in_proj.
#pragma once

#include <mamba/grad_ops.hpp>
#include <mamba/mamba2.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// One backward run: what the steps hand to each other.
struct Mamba2Backward {
  const Mamba2& block;
  const Mamba2Activations& a;
  const MixerBackward& r;
  Stream& stream;
  TensorView dprojected = {}, dconvolved = {}, dgated = {};  // as those without d

  // dgated becomes the gradient of Ssd's y.
  void norm() const {
    GatedRmsNormGrad norm;
    norm.x = a.scanned;
    norm.z = block.z(a.projected);
    norm.weight = block.w.gated_norm_weight;
    norm.dy = norm.dx = dgated;
    norm.dz = block.z(dprojected);
    norm.dweight = r.gradients.gated_norm_weight;
    norm.groups = block.c.groups;
    norm.norm = block.c.rmsnorm;
    norm.gate_first = !block.c.norm_before_gate;
    norm.epsilon = block.c.gated_norm_epsilon;
    norm.accumulate = r.accumulate;
    run(norm, stream);
  }

  void scan() const {
    const Ssd forward = block.ssd(a);
    SsdGrad scan;
    scan.x = forward.x;
    scan.dt = forward.dt;
    scan.A_log = forward.A_log;
    scan.B = forward.B;
    scan.C = forward.C;
    scan.D = forward.D;
    scan.dt_bias = forward.dt_bias;
    scan.reset = r.forward.reset;
    scan.groups = forward.groups;
    scan.dt_low = forward.dt_low;
    scan.dt_high = forward.dt_high;
    scan.chunk_states = forward.chunk_states;
    scan.chunk_steps = forward.chunk_steps;
    scan.dy = dgated;
    if (r.dstate != nullptr) scan.dfinal_state = scan.dinitial_state = r.dstate->ssm;
    scan.dx = block.x(dconvolved);
    scan.ddt = block.dt(dprojected);
    scan.dB = block.B(dconvolved);
    scan.dC = block.C(dconvolved);
    scan.dA_log = r.gradients.A_log;
    scan.dD = r.gradients.D;
    scan.ddt_bias = r.gradients.dt_bias;
    scan.accumulate = r.accumulate;
    run(scan, stream);
  }

  void convolution() const {
    CausalConvGrad conv;
    conv.x = block.xBC(a.projected);
    conv.weight = block.w.conv_weight;
    conv.bias = block.w.conv_bias;
    conv.initial_state = r.forward.initial_state.conv;
    conv.reset = r.forward.reset;
    conv.dy = dconvolved;
    if (r.dstate != nullptr) conv.dfinal_state = conv.dinitial_state = r.dstate->conv;
    conv.dx = block.xBC(dprojected);
    conv.dweight = r.gradients.conv_weight;
    conv.dbias = r.gradients.conv_bias;
    conv.accumulate = r.accumulate;
    run(conv, stream);
  }
};

inline void Mamba2::backward(const MixerBackward& r, const Mamba2Activations& a,
                             Stream& stream) const {
  Scratch scratch(stream);
  const DType dtype = r.dy.dtype();
  Mamba2Backward b{*this, a, r, stream};
  b.dprojected = scratch.take(a.projected.shape(), dtype);
  b.dconvolved = scratch.take(a.convolved.shape(), dtype);
  b.dgated = scratch.take(a.gated.shape(), dtype);

  if (r.gradients.out_proj) gate(a, stream);  // which writes a.gated once more
  LinearGrad out_proj;
  out_proj.x = a.gated;
  out_proj.weight = w.out_proj;
  out_proj.dy = r.dy;
  out_proj.dx = b.dgated;
  out_proj.dweight = r.gradients.out_proj;
  out_proj.dbias = r.gradients.out_proj_bias;
  out_proj.accumulate = r.accumulate;
  run(out_proj, stream);
  b.norm();
  b.scan();
  b.convolution();

  LinearGrad in_proj;
  in_proj.x = r.forward.x;
  in_proj.weight = w.in_proj;
  in_proj.dy = b.dprojected;
  in_proj.dx = r.dx;
  in_proj.dweight = r.gradients.in_proj;
  in_proj.dbias = r.gradients.in_proj_bias;
  in_proj.accumulate = r.accumulate;
  run(in_proj, stream);
}

}  // namespace detail
}  // namespace mamba
