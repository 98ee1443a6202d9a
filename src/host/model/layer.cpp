#include <mamba/layer.hpp>

#include "host/core/finished.hpp"
#include "host/core/row_map.hpp"

namespace mamba {

namespace {

// The tensors that an option switches off must not be there: they would be silently unused.
void check_absent(const char* name, const Tensor& tensor, bool wanted) {
  if (!wanted && tensor) {
    throw ArgumentError("Layer", name, "none (the config has it off)", tensor.shape().to_string());
  }
}

}  // namespace

Layer::Layer(const LayerConfig& config, LayerWeights weights)
    : config_(config.resolved()), weights_(std::move(weights)) {
  check::storage("Layer", "in_proj.weight", weights_.in_proj);
  check_absent("in_proj.bias", weights_.in_proj_bias, config_.use_bias);
  check_absent("out_proj.bias", weights_.out_proj_bias, config_.use_bias);
  check_absent("conv1d.bias", weights_.conv_bias, config_.use_conv_bias);
  check_absent("norm.weight", weights_.gated_norm_weight, config_.gated_norm);
  check_absent("norm.bias", weights_.gated_norm_bias, config_.gated_norm);
  LayerWeights::each(weights_, config_, dtype(),
                     [&](const char* name, const Tensor& tensor, const Shape& shape, DType type) {
                       check::is("Layer", name, tensor, shape, type, device());
                     });
}

Layer Layer::random(const LayerConfig& config, std::uint64_t seed, DType dtype, Device device) {
  LayerWeights weights = random_layer_weights(config, dtype, seed);
  if (device.is_cuda()) {
    LayerWeights::each(
        weights, config.resolved(), dtype,
        [&](const char*, Tensor& tensor, const Shape&, DType) { tensor = tensor.to(device); });
  }
  return Layer(config, std::move(weights));
}

void Layer::check_state(const char* where, const MambaState& state, std::int64_t rows) const {
  for (const StateTensor& one : state_tensors) {
    const Tensor& tensor = state.*one.tensor;
    const Shape shape = one.shape(config_, rows);
    const DType type = one.f32 ? DType::f32 : dtype();
    if (tensor.shape() == shape && tensor.dtype() == type && tensor.device() == device()) continue;
    const std::string name = std::string("state.") + one.name;  // takes memory
    check::is(where, name.c_str(), tensor, shape, type, device());
  }
}

void Layer::check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                       Stream& stream, const ForwardOptions& options) const {
  constexpr const char* where = "Layer::forward";
  check::rank(where, "x", x, 3);
  check::is(where, "x", x, x.shape().with(2, config_.d_model), dtype(), device());
  check::is(where, "y", y, x.shape(), dtype(), device());
  check::stream(where, stream, device());
  check_state(where, state, options.rows.read || options.rows.write ? state.batch() : x.dim(0));
  check_rows(where, options.rows, x.dim(0), state.batch(), stream);
  if (options.reset) {
    check::is(where, "reset", options.reset, {x.dim(0), x.dim(1)}, DType::i32, device());
  }
  if (options.tape != nullptr && options.rows.read) {
    throw ArgumentError(where, "rows", "none with a tape", "a row map");
  }
}

void Layer::check_gradients(const char* where, const LayerWeights& gradients) const {
  LayerWeights::each(gradients, config_, DType::f32,
                     [&](const char* name, const Tensor& tensor, const Shape& shape, DType type) {
                       const bool right = tensor.shape() == shape && tensor.dtype() == type &&
                                          tensor.device() == device();
                       if (!tensor || right) return;  // a name takes memory
                       const std::string full = std::string("gradients.") + name;
                       check::is(where, full.c_str(), tensor, shape, type, device());
                     });
}

void Layer::check_tape(const char* where, const LayerTape& tape) const {
  if (!tape.filled()) {
    throw ArgumentError(where, "tape", "a forward run that no backward has used", "none");
  }
  if (tape.layer_ != weights_.in_proj.view().data()) {
    throw ArgumentError(where, "tape", "a forward run of this layer", "one of another");
  }
}

void Layer::check_backward(const LayerTape& tape, const ConstTensorView& dy,
                           const MambaState* dstate, const TensorView& dx,
                           const LayerWeights& gradients, const Stream& stream) const {
  constexpr const char* where = "Layer::backward";
  check_tape(where, tape);
  check::is(where, "dy", dy, tape.x_.shape(), dtype(), device());
  if (dx) check::is(where, "dx", dx, tape.x_.shape(), dtype(), device());
  check::stream(where, stream, device());
  if (dstate != nullptr) check_state(where, *dstate, dy.dim(0));
  check_gradients(where, gradients);
}

namespace {

// Memory that is already right is kept.
TensorView shaped(Tensor& tensor, const Shape& shape, DType dtype, Device device) {
  if (tensor.shape() != shape || tensor.dtype() != dtype || tensor.device() != device) {
    tensor = Tensor(shape, dtype, device);
  }
  return tensor;
}

void keep(Tensor& tensor, const ConstTensorView& from, Stream& stream) {
  copy(from, shaped(tensor, from.shape(), from.dtype(), from.device()), stream);
}

}  // namespace

void Layer::begin(LayerTape& tape, const ConstTensorView& x, const MambaState& state,
                  Stream& stream, const ForwardOptions& options) const {
  tape.layer_ = nullptr;
  keep(tape.x_, x, stream);
  for (const StateTensor& one : state_tensors) {
    if (one.backward || tape.recompute) {
      keep(tape.initial_.*one.tensor, state.*one.tensor, stream);
    }
  }
  tape.reset_ = options.reset ? std::move(tape.reset_) : Tensor();
  if (options.reset) keep(tape.reset_, options.reset, stream);
  tape.layer_ = weights_.in_proj.view().data();
}

namespace {

struct Sizes {
  Shape d_inner, selection, chunk_states;
  std::int64_t chunk_steps;

  Sizes(const LayerConfig& c, const Tensor& A_log, std::int64_t batch, std::int64_t time,
        DType dtype, const Stream& stream)
      : d_inner{batch, time, c.d_inner}, selection{batch, time, c.dt_rank + 2 * c.d_state} {
    SelectiveScan scan;
    scan.x = ConstTensorView(nullptr, d_inner, dtype, stream.device());
    scan.A_log = A_log;
    chunk_steps = scan_chunk_steps(scan, stream);
    const std::int64_t chunks = (time + chunk_steps - 1) / chunk_steps;
    chunk_states = {batch, chunks, c.d_inner, c.d_state};
  }
};

}  // namespace

LayerActivations Layer::kept_on(LayerTape& tape, Scratch& scratch, const Stream& stream) const {
  const LayerConfig& c = config_;
  const std::int64_t batch = tape.x_.dim(0);
  const std::int64_t time = tape.x_.dim(1);
  const Sizes sizes(c, weights_.A_log, batch, time, dtype(), stream);
  const auto kept = [&](Tensor& tensor, const Shape& shape, DType type) {
    return shaped(tensor, shape, type, device());
  };
  LayerActivations a;
  a.xz = kept(tape.xz_, {batch, time, 2 * c.d_inner}, dtype());
  a.u = kept(tape.u_, sizes.d_inner, dtype());
  a.selection = kept(tape.selection_, sizes.selection, dtype());
  a.raw_selection =
      c.norm_dt_b_c ? kept(tape.raw_selection_, sizes.selection, dtype()) : a.selection;
  a.dt = kept(tape.dt_, sizes.d_inner, dtype());
  a.gated = scratch.take(sizes.d_inner, dtype());
  a.scanned = c.gated_norm ? kept(tape.scanned_, sizes.d_inner, dtype()) : a.gated;
  a.chunk_states = kept(tape.chunk_states_, sizes.chunk_states, DType::f32);
  a.chunk_steps = sizes.chunk_steps;
  return a;
}

LayerActivations Layer::in_scratch(std::int64_t batch, std::int64_t time, bool for_backward,
                                   Scratch& scratch, const Stream& stream) const {
  const LayerConfig& c = config_;
  const Shape d_inner{batch, time, c.d_inner};
  const Shape selection{batch, time, c.dt_rank + 2 * c.d_state};
  LayerActivations a;
  a.xz = scratch.take({batch, time, 2 * c.d_inner}, dtype());
  a.u = scratch.take(d_inner, dtype());
  a.selection = scratch.take(selection, dtype());
  a.raw_selection = c.norm_dt_b_c && for_backward ? scratch.take(selection, dtype()) : a.selection;
  if (for_backward) a.dt = scratch.take(d_inner, dtype());
  a.gated =
      for_backward ? scratch.take(d_inner, dtype()) : a.u;  // the scan may write where it reads
  a.scanned = c.gated_norm && for_backward ? scratch.take(d_inner, dtype()) : a.gated;
  if (!for_backward) return a;
  const Sizes sizes(c, weights_.A_log, batch, time, dtype(), stream);
  a.chunk_states = scratch.take(sizes.chunk_states, DType::f32);
  a.chunk_steps = sizes.chunk_steps;
  return a;
}

Tensor Layer::forward(ConstTensorView x, MambaState& state) const {
  check::present("Layer::forward", "x", x);
  Tensor y(x.shape(), dtype(), device());
  finished(device(), [&](Stream& stream) { forward(x, state, y, stream); });
  return y;
}

Tensor Layer::forward(ConstTensorView x) const {
  check::rank("Layer::forward", "x", x, 3);
  MambaState state = make_state(x.dim(0));
  return forward(x, state);
}

}  // namespace mamba
