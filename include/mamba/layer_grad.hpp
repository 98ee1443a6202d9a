// The gradients of a layer, from out_proj back to in_proj. Included by layer.hpp.
#pragma once

#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>

namespace mamba {

// y = x weight^T + bias hands dy on. Operands that are absent are not wanted.
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

// One backward run: what the steps hand to each other.
struct Layer::Backward {
  const Layer& layer;
  const LayerConfig& c;
  const LayerWeights& w;
  const LayerActivations& a;  // a.gated is written here
  ConstTensorView x, initial_conv, reset;
  MambaState* dstate;
  LayerWeights& gradients;
  bool accumulate;
  Stream& stream;
  TensorView dxz, du, dselection, ddt, dgated;  // as xz, u, selection, dt and gated

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
    norm.dweight = gradients.gated_norm_weight;
    norm.dbias = gradients.gated_norm_bias;
    norm.epsilon = c.gated_norm_epsilon;
    norm.accumulate = accumulate;
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
    scan.reset = reset;
    scan.chunk_states = a.chunk_states;
    scan.chunk_steps = a.chunk_steps;
    scan.dy = dgated;
    if (dstate != nullptr) scan.dfinal_state = scan.dinitial_state = dstate->ssm;
    scan.dx = du;
    scan.ddt = ddt;
    scan.dB = dselection.columns(c.dt_rank, c.d_state);
    scan.dC = dselection.columns(c.dt_rank + c.d_state, c.d_state);
    scan.dA_log = gradients.A_log;
    scan.dD = gradients.D;
    scan.ddt_bias = gradients.dt_bias;
    scan.accumulate = accumulate;
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
    dt_proj.dweight = gradients.dt_proj;
    dt_proj.accumulate = accumulate;
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
    x_proj.dweight = gradients.x_proj;
    x_proj.accumulate = accumulate;
    run(x_proj, stream);
  }

  void convolution() const {
    CausalConvGrad conv;
    conv.x = a.xz.columns(0, c.d_inner);
    conv.weight = w.conv_weight;
    conv.bias = w.conv_bias;
    conv.initial_state = initial_conv;
    conv.reset = reset;
    conv.dy = du;
    if (dstate != nullptr) conv.dfinal_state = conv.dinitial_state = dstate->conv;
    conv.dx = dxz.columns(0, c.d_inner);
    conv.dweight = gradients.conv_weight;
    conv.dbias = gradients.conv_bias;
    conv.accumulate = accumulate;
    run(conv, stream);
  }
};

inline void Layer::backward(LayerTape& tape, ConstTensorView dy, MambaState* dstate, TensorView dx,
                            LayerWeights& gradients, Stream& stream,
                            const BackwardOptions& options) const {
  check_backward(tape, dy, dstate, dx, gradients, stream);
  const LayerConfig& c = config_;
  const std::int64_t batch = dy.dim(0);
  const std::int64_t time = dy.dim(1);
  Scratch scratch(stream);
  LayerActivations a;
  if (tape.recompute) {
    a = in_scratch(batch, time, true, scratch, stream);
    Run again{tape.x_, tape.initial_.conv, tape.initial_.ssm, {}, {}, {}, nullptr};
    again.options.reset = tape.reset_;
    mix(again, a, stream);
  } else {
    a = kept_on(tape, scratch, stream);
  }

  Backward b{*this,       c,
             weights_,    a,
             tape.x_,     tape.initial_.conv,
             tape.reset_, dstate,
             gradients,   options.accumulate,
             stream,      {},
             {},          {},
             {},          {}};
  b.dxz = scratch.take(a.xz.shape(), dtype());
  b.du = scratch.take(a.u.shape(), dtype());
  b.dselection = scratch.take(a.selection.shape(), dtype());
  b.ddt = scratch.take(a.u.shape(), dtype());
  b.dgated = scratch.take(a.u.shape(), dtype());

  LinearGrad out_proj;  // its weight's gradient waits for `gated`
  out_proj.weight = weights_.out_proj;
  out_proj.dy = dy;
  out_proj.dx = b.dgated;
  out_proj.dbias = gradients.out_proj_bias;
  out_proj.accumulate = options.accumulate;
  run(out_proj, stream);
  if (c.gated_norm) b.gated_norm();
  b.scan();
  out_proj.dx = {};
  out_proj.dbias = {};
  out_proj.x = a.gated;
  out_proj.dweight = gradients.out_proj;
  run(out_proj, stream);
  b.selection();
  b.convolution();

  LinearGrad in_proj;
  in_proj.x = tape.x_;
  in_proj.weight = weights_.in_proj;
  in_proj.dy = b.dxz;
  in_proj.dx = dx;
  in_proj.dweight = gradients.in_proj;
  in_proj.dbias = gradients.in_proj_bias;
  in_proj.accumulate = options.accumulate;
  run(in_proj, stream);
  tape.layer_ = nullptr;
}

}  // namespace mamba
