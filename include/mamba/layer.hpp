// One Mamba block (Gu & Dao 2023, figure 3): weights inside, memory outside.
#pragma once

#include <cstdint>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/config.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>
#include <mamba/weights.hpp>

namespace mamba {

// What a forward call may be told beside its operands. All absent by default.
struct SequenceOptions {
  ConstTensorView reset;  // [batch, time] i32; non-zero: x[b, t] begins a new sequence
  RowMap rows;            // [batch] into a larger state: see RowMap. A padding row's y is zeros
};

struct ForwardOptions : SequenceOptions {
  StepStates* steps = nullptr;  // receives the state after every step
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
  DType dtype() const { return weights_.in_proj.dtype(); }
  Device device() const { return weights_.in_proj.device(); }

  // Nothing seen yet, for `batch` sequences.
  MambaState make_state(std::int64_t batch) const {
    return MambaState(config_, batch, dtype(), device());
  }

  // Continues from `state` for the steps of x and leaves in it what was remembered. Any time >= 0:
  // a whole sequence, a piece of one, a single step. x [batch, time, d_model] -> y the same, both
  // of dtype(). Allocates nothing after its first call of a size, waits for nothing. (On the CPU,
  // with more than 8 rows on several threads, BLIS's pool of packing buffers may still grow when
  // two of them first pack at once.)
  void forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
               const ForwardOptions& options = {}) const;

  // The same into a new tensor, on the default stream, done when it returns. Without a state: from
  // zero.
  Tensor forward(ConstTensorView x, MambaState& state) const;
  Tensor forward(ConstTensorView x) const;

  // Throws, in the name of `where`, if `state` is not one of this layer's, of so many rows.
  void check_state(const char* where, const MambaState& state, std::int64_t rows) const;

 private:
  void check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                  const Stream& stream, const ForwardOptions& options) const;
  void normalise(TensorView view, Stream& stream) const;

  LayerConfig config_;
  LayerWeights weights_;
};

inline void Layer::forward(ConstTensorView x, MambaState& state, TensorView y, Stream& stream,
                           const ForwardOptions& options) const {
  check_call(x, state, y, stream, options);
  const std::int64_t batch = x.dim(0);
  const std::int64_t time = x.dim(1);
  if (options.steps != nullptr) options.steps->prepare(state, batch, time);
  if (x.count() == 0 && !options.rows.read) return;  // nothing to see, nothing to move

  const LayerConfig& c = config_;
  const LayerWeights& w = weights_;
  Scratch scratch(stream);

  // Two branches: x goes through the convolution and the scan, z gates what comes out.
  Matmul in_proj;
  in_proj.x = x;
  in_proj.weight = w.in_proj;
  in_proj.bias = w.in_proj_bias;
  in_proj.y = scratch.take({batch, time, 2 * c.d_inner}, dtype());
  run(in_proj, stream);

  CausalConv conv;
  conv.x = in_proj.y.columns(0, c.d_inner);
  conv.weight = w.conv_weight;
  conv.bias = w.conv_bias;
  conv.initial_state = conv.final_state = state.conv;
  conv.rows = options.rows;
  conv.reset = options.reset;
  conv.y = scratch.take({batch, time, c.d_inner}, dtype());
  if (options.steps != nullptr) conv.step_states = options.steps->conv;
  run(conv, stream);

  // The selection: dt, B and C depend on the input.
  Matmul x_proj;
  x_proj.x = conv.y;
  x_proj.weight = w.x_proj;
  x_proj.y = scratch.take({batch, time, c.dt_rank + 2 * c.d_state}, dtype());
  run(x_proj, stream);
  const TensorView dt_low = x_proj.y.columns(0, c.dt_rank);
  const TensorView B = x_proj.y.columns(c.dt_rank, c.d_state);
  const TensorView C = x_proj.y.columns(c.dt_rank + c.d_state, c.d_state);
  if (c.norm_dt_b_c) {
    for (const TensorView& view : {dt_low, B, C}) normalise(view, stream);
  }

  Matmul dt_proj;
  dt_proj.x = dt_low;
  dt_proj.weight = w.dt_proj;
  dt_proj.y = scratch.take({batch, time, c.d_inner}, dtype());
  run(dt_proj, stream);

  SelectiveScan scan;
  scan.x = conv.y;
  scan.dt = dt_proj.y;
  scan.A_log = w.A_log;
  scan.B = B;
  scan.C = C;
  scan.D = w.D;
  scan.z = in_proj.y.columns(c.d_inner, c.d_inner);
  scan.dt_bias = w.dt_bias;
  scan.initial_state = scan.final_state = state.ssm;
  scan.rows = options.rows;
  scan.reset = options.reset;
  scan.y = conv.y;  // in place: the scan reads x where it writes y
  if (options.steps != nullptr) scan.step_states = options.steps->ssm;
  run(scan, stream);

  Matmul out_proj;
  out_proj.x = scan.y;
  out_proj.weight = w.out_proj;
  out_proj.bias = w.out_proj_bias;
  out_proj.y = y;
  run(out_proj, stream);
  if (options.rows.read && c.use_bias) {  // a padding row has got the bias
    ZeroRows padding;
    padding.padding = options.rows;
    padding.view = y;
    run(padding, stream);
  }
}

// Falcon-Mamba's weightless norm, in place.
inline void Layer::normalise(TensorView view, Stream& stream) const {
  AddRmsNorm norm;
  norm.x = norm.y = view;
  norm.epsilon = config_.norm_dt_b_c_epsilon;
  run(norm, stream);
}

}  // namespace mamba
