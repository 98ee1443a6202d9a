// One Mamba block (Gu & Dao 2023, figure 3): weights inside, memory outside.
#pragma once

#include <cstdint>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/config.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/tape.hpp>
#include <mamba/weights.hpp>

namespace mamba {

// What a forward call may be told beside its operands. All absent by default.
struct SequenceOptions {
  ConstTensorView reset;  // [batch, time] i32; non-zero: x[b, t] begins a new sequence
  RowMap rows;            // [batch] into a larger state: see RowMap. A padding row's y is zeros
};

struct ForwardOptions : SequenceOptions {
  StepStates* steps = nullptr;  // receives the state after every step
  LayerTape* tape = nullptr;    // receives what backward needs; not with a row map
};

// What a run computes between x and y. Where nothing is kept, some share memory.
struct LayerActivations {
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

// Constant once made: what changes is in the caller's hands. Any number of threads may call forward
// at once, each with its own stream and state. Shapes, dtypes and devices are checked before any
// work; after an ArgumentError state and outputs are as they were.
class Layer {
 public:
  // Takes the weights, whose shapes, dtypes (matrices: all of in_proj's) and device are checked.
  Layer(const LayerConfig& config, LayerWeights weights);
  // Fresh weights by the published recipe.
  static Layer random(const LayerConfig& config, std::uint64_t seed, DType dtype = DType::f32,
                      Device device = Device::cpu());

  const LayerConfig& config() const { return config_; }  // resolved
  const LayerWeights& weights() const { return weights_; }
  // For training. Values may change between calls, never shapes, dtypes or places.
  LayerWeights& weights() { return weights_; }
  DType dtype() const { return weights_.in_proj.dtype(); }
  Device device() const { return weights_.in_proj.device(); }

  // Nothing seen yet, for `batch` sequences.
  MambaState make_state(std::int64_t batch) const {
    return MambaState(config_, batch, dtype(), device());
  }

  // Continues from `state` for the steps of x and leaves in it what was remembered. Any time >= 0:
  // a whole sequence, a piece of one, a single step. x [batch, time, d_model] -> y the same, both
  // of dtype(). Allocates nothing after its first call of a size, waits for nothing.
  void forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
               const ForwardOptions& options = {}) const;
  // The same for x = norm.y, computed first: for a single step a device may do both in one pass.
  void forward(const AddRmsNorm& norm, MambaState& state, TensorView y, Stream& stream,
               const ForwardOptions& options = {}) const;

  // The same into a new tensor, on the default stream, done when it returns. Without a state: from
  // zero.
  Tensor forward(ConstTensorView x, MambaState& state) const;
  Tensor forward(ConstTensorView x) const;

  // The gradients of the run on `tape`, which is empty afterwards. dy [batch, time, d_model] is
  // that of y. `dstate` comes in as that of the final state and goes out as that of the initial
  // one, so pieces of a sequence run backward in reverse order hand it on; zero it, or give
  // nullptr, to stop there (truncated backpropagation). dx may be absent, or be dy. `gradients` is
  // of this layer's shapes, all f32 (zero_gradients); what is absent in it is not computed. A tape
  // without a run, or of another layer, is an ArgumentError.
  void backward(LayerTape& tape, ConstTensorView dy, MambaState* dstate, TensorView dx,
                LayerWeights& gradients, Stream& stream, const BackwardOptions& options = {}) const;

  // Throws, in the name of `where`, if `state` is not one of this layer's, of so many rows.
  void check_state(const char* where, const MambaState& state, std::int64_t rows) const;
  // Throws if what is there of `gradients` is not f32 of the weights' shapes.
  void check_gradients(const char* where, const LayerWeights& gradients) const;
  // Throws if there is no run of this layer on `tape`.
  void check_tape(const char* where, const LayerTape& tape) const;

 private:
  // The operands of one run. The final states may be absent.
  struct Run {
    ConstTensorView x, initial_conv, initial_ssm;
    TensorView final_conv, final_ssm;
    SequenceOptions options;
    StepStates* steps = nullptr;
    const AddRmsNorm* norm = nullptr;  // still to be run: x is its y
  };

  void forward(ConstTensorView x, const AddRmsNorm* norm, MambaState& state, TensorView y,
               Stream& stream, const ForwardOptions& options) const;
  void check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                  Stream& stream, const ForwardOptions& options) const;
  void check_backward(const LayerTape& tape, const ConstTensorView& dy, const MambaState* dstate,
                      const TensorView& dx, const LayerWeights& gradients,
                      const Stream& stream) const;
  void begin(LayerTape& tape, const ConstTensorView& x, const MambaState& state, Stream& stream,
             const ForwardOptions& options) const;
  LayerActivations kept_on(LayerTape& tape, Scratch& scratch, const Stream& stream) const;
  LayerActivations in_scratch(std::int64_t batch, std::int64_t time, bool for_backward,
                              Scratch& scratch, const Stream& stream) const;
  void mix(const Run& run, const LayerActivations& a, Stream& stream) const;
  void select(const LayerActivations& a, Stream& stream) const;
  void normalise(ConstTensorView from, TensorView to, Stream& stream) const;

  // The steps of backward, from out_proj to in_proj: layer_grad.hpp.
  struct Backward;

  LayerConfig config_;
  LayerWeights weights_;
};

inline void Layer::forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
                           const ForwardOptions& options) const {
  forward(x, nullptr, state, y, stream, options);
}

inline void Layer::forward(const AddRmsNorm& norm, MambaState& state, TensorView y, Stream& stream,
                           const ForwardOptions& options) const {
  forward(norm.y, &norm, state, y, stream, options);
}

inline void Layer::forward(ConstTensorView x, const AddRmsNorm* norm, MambaState& state,
                           TensorView y, Stream& stream, const ForwardOptions& options) const {
  check_call(x, state, y, stream, options);
  const std::int64_t batch = x.dim(0);
  const std::int64_t time = x.dim(1);
  if (options.steps != nullptr) options.steps->prepare(state, batch, time);
  if (options.tape != nullptr) {
    if (norm != nullptr) run(*std::exchange(norm, nullptr), stream);
    begin(*options.tape, x, state, stream, options);
  }
  if (x.count() == 0 && !options.rows.read) return;  // nothing to see, nothing to move

  const ConstantWeights constant(stream);
  Scratch scratch(stream);
  const bool keep = options.tape != nullptr && !options.tape->recompute;
  const LayerActivations a = keep ? kept_on(*options.tape, scratch, stream)
                                  : in_scratch(batch, time, false, scratch, stream);
  mix({x, state.conv, state.ssm, state.conv, state.ssm, options, options.steps, norm}, a, stream);

  Matmul out_proj;
  out_proj.x = a.gated;
  out_proj.weight = weights_.out_proj;
  out_proj.bias = weights_.out_proj_bias;
  out_proj.y = y;
  run(out_proj, stream);
  // out_proj has added its bias to padding too.
  if (options.rows.read && (config_.use_bias || config_.gated_norm)) {
    ZeroRows padding;
    padding.padding = options.rows;
    padding.view = y;
    run(padding, stream);
  }
}

// From x to what out_proj reads.
inline void Layer::mix(const Run& r, const LayerActivations& a, Stream& stream) const {
  const LayerConfig& c = config_;
  const LayerWeights& w = weights_;

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
  conv.initial_state = r.initial_conv;
  conv.final_state = r.final_conv;
  conv.rows = r.options.rows;
  conv.reset = r.options.reset;
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
  scan.initial_state = r.initial_ssm;
  scan.final_state = r.final_ssm;
  scan.rows = r.options.rows;
  scan.reset = r.options.reset;
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
inline void Layer::select(const LayerActivations& a, Stream& stream) const {
  const LayerConfig& c = config_;
  Matmul x_proj;
  x_proj.x = a.u;
  x_proj.weight = weights_.x_proj;
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
  dt_proj.weight = weights_.dt_proj;
  dt_proj.y = a.dt;
  run(dt_proj, stream);
}

// Falcon-Mamba's weightless norm.
inline void Layer::normalise(ConstTensorView from, TensorView to, Stream& stream) const {
  AddRmsNorm norm;
  norm.x = from;
  norm.y = to;
  norm.epsilon = config_.norm_dt_b_c_epsilon;
  run(norm, stream);
}

}  // namespace mamba

#include <mamba/layer_grad.hpp>
