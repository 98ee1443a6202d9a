#include <mamba/layer.hpp>

#include <mamba/check.hpp>

#include "host/core/finished.hpp"
#include "host/core/row_map.hpp"
#include "host/model/kept.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

Layer::Layer(const LayerConfig& config, LayerWeights weights)
    : config_(config.resolved()), weights_(std::move(weights)), mixer_(&detail::mixer_of(config_)) {
  const detail::LayerWeight first = mixer_->weights(config_, DType::f32).front();
  matrix_ = first.tensor;
  check::storage("Layer", first.name, weights_.*matrix_);
  for (const detail::LayerWeight& one : mixer_->weights(config_, dtype())) {
    const Tensor& tensor = weights_.*one.tensor;
    if (one.wanted || !tensor) continue;  // it would be silently unused
    throw ArgumentError("Layer", one.name, "none (the config has it off)",
                        tensor.shape().to_string());
  }
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

void Layer::check_call(const ConstTensorView& x, const MambaState& state, const TensorView& y,
                       Stream& stream, const LayerOptions& options) const {
  constexpr const char* where = "Layer::forward";
  check::rank(where, "x", x, 3);
  check::is(where, "x", x, x.shape().with(2, config_.d_model), dtype(), device());
  check::is(where, "y", y, x.shape(), dtype(), device());
  check::stream(where, stream, device());
  check_state(where, *this, state,
              options.rows.read || options.rows.write ? state.batch() : x.dim(0));
  check_rows(where, options.rows, x.dim(0), state.batch(), stream);
  if (options.reset) {
    check::is(where, "reset", options.reset, {x.dim(0), x.dim(1)}, DType::i32, device());
  }
  if (options.tape != nullptr && options.rows.read) {
    throw ArgumentError(where, "rows", "none with a tape", "a row map");
  }
}

void Layer::check_tape(const char* where, const LayerTape& tape) const {
  if (!tape.filled()) {
    throw ArgumentError(where, "tape", "a forward run that no backward has used", "none");
  }
  if (tape.layer_ != (weights_.*matrix_).view().data()) {
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
  if (dstate != nullptr) check_state(where, *this, *dstate, dy.dim(0));
  check_gradients(where, *this, gradients);
}

namespace {

void keep(Tensor& tensor, const ConstTensorView& from, Stream& stream) {
  copy(from, shaped(tensor, from.shape(), from.dtype(), from.device()), stream);
}

}  // namespace

ConstTensorView Layer::begin(LayerTape& tape, const ConstTensorView& x, const AddRmsNorm* norm,
                             const MambaState& state, Stream& stream,
                             const LayerOptions& options) const {
  tape.layer_ = nullptr;
  if (norm != nullptr) {
    AddRmsNorm to_tape = *norm;
    to_tape.y = shaped(tape.x_, x.shape(), x.dtype(), x.device());
    run(to_tape, stream);
  } else {
    keep(tape.x_, x, stream);
  }
  for (const StateTensor& one : state_tensors) {
    if (one.backward || tape.recompute) {
      keep(tape.initial_.*one.tensor, state.*one.tensor, stream);
    }
  }
  tape.reset_ = options.reset ? std::move(tape.reset_) : Tensor();
  if (options.reset) keep(tape.reset_, options.reset, stream);
  return tape.x_;
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
