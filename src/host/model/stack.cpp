#include <mamba/stack.hpp>

#include <fmt/format.h>

#include <mamba/check.hpp>

#include "host/core/finished.hpp"
#include "host/core/row_map.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

void StackSteps::restore(std::int64_t t, StackState& state, Stream& stream) const {
  if (state.layers.size() != layers.size()) {
    throw ArgumentError("StackSteps::restore", "layers", fmt::format("{} layers", layers.size()),
                        fmt::format("{}", state.layers.size()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].check_restore("StackSteps::restore", t, state.layers[i], stream);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i].restore(t, state.layers[i], stream);
}

Stack::Stack(const LanguageModelConfig& config, StackWeights weights)
    : d_model_(config.layer.d_model), epsilon_(config.norm_epsilon) {
  check::present("Stack", "norm_f.weight", weights.norm_f);
  const Device device = weights.norm_f.device();
  const auto n_layer = static_cast<std::size_t>(config.n_layer);
  if (weights.layers.size() != n_layer || weights.norms.size() != n_layer) {
    throw ArgumentError("Stack", "weights", fmt::format("{} layers and as many norms", n_layer),
                        fmt::format("{} and {}", weights.layers.size(), weights.norms.size()));
  }
  for (std::size_t i = 0; i < n_layer; ++i) {
    check::is("Stack", "norm.weight", weights.norms[i], {d_model_}, DType::f32, device);
    layers_.emplace_back(config.layer, std::move(weights.layers[i]));
    if (layers_[i].dtype() != layers_[0].dtype() || layers_[i].device() != device) {
      throw ArgumentError(
          "Stack", fmt::format("layers.{}", i),
          fmt::format("{} on {}", name_of(layers_[0].dtype()), device.name()),
          fmt::format("{} on {}", name_of(layers_[i].dtype()), layers_[i].device().name()));
    }
  }
  check::is("Stack", "norm_f.weight", weights.norm_f, {d_model_}, DType::f32, device);
  norms_ = std::move(weights.norms);
  norms_.push_back(std::move(weights.norm_f));
}

namespace {

template <class List>
auto& at(List& list, const char* name, std::size_t i) {
  if (i >= list.size()) {
    throw ArgumentError("Stack", name, fmt::format("a number below {}", list.size()),
                        fmt::format("{}", i));
  }
  return list[i];
}

}  // namespace

const Layer& Stack::layer(std::size_t i) const { return at(layers_, "layer", i); }
Layer& Stack::layer(std::size_t i) { return at(layers_, "layer", i); }
const Tensor& Stack::norm(std::size_t i) const { return at(norms_, "norm", i); }
Tensor& Stack::norm(std::size_t i) { return at(norms_, "norm", i); }

DType Stack::dtype() const { return layers_.empty() ? DType::f32 : layers_.front().dtype(); }

StackState Stack::make_state(std::int64_t batch) const {
  StackState state;
  for (const Layer& layer : layers_) state.layers.push_back(layer.make_state(batch));
  return state;
}

void Stack::check_call(const ConstTensorView& x, const StackState& state, const TensorView& y,
                       Stream& stream, const StackOptions& options) const {
  constexpr const char* where = "Stack::forward";
  check::rank(where, "x", x, 3);
  check::is(where, "x", x, x.shape().with(2, d_model_), dtype(), device());
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

bool Stack::step_at_once(const ConstTensorView& x, StackState& state, const TensorView& sum,
                         Stream& stream, const StackOptions& options) const {
  const bool kept = options.tape != nullptr || options.steps != nullptr;
  if (kept || layers_.empty() || x.dim(0) < 1 || x.dim(1) != 1) return false;
  return detail::mixer_of(layers_[0].config())
      .step_at_once(*this, epsilon_, x, state, sum, options.rows, options.reset, stream);
}

void Stack::begin(StackTape& tape, const Shape& shape) const {
  tape.filled_ = false;
  tape.layers_.resize(size());
  for (LayerTape& layer : tape.layers_) layer.recompute = tape.recompute;
  tape.sums_.resize(size() + 1);
  for (Tensor& sum : tape.sums_) {
    if (sum.shape() != shape || sum.device() != device()) sum = Tensor(shape, DType::f32, device());
  }
}

void Stack::check_backward(const StackTape& tape, const ConstTensorView& dy,
                           const StackState* dstate, const TensorView& dx,
                           const StackWeights& gradients, const Stream& stream) const {
  constexpr const char* where = "Stack::backward";
  if (!tape.filled_) {
    throw ArgumentError(where, "tape", "a forward run that no backward has used", "none");
  }
  if (tape.layers_.size() != size()) {
    throw ArgumentError(where, "tape", "a forward run of this stack", "one of another");
  }
  for (std::size_t i = 0; i < size(); ++i) layers_[i].check_tape(where, tape.layers_[i]);
  check::is(where, "dy", dy, tape.sums_.back().shape(), dtype(), device());
  if (dx) check::is(where, "dx", dx, dy.shape(), dtype(), device());
  check::stream(where, stream, device());
  if (dstate != nullptr) check_state(where, *this, *dstate, dy.dim(0));
  check_gradients(where, *this, gradients);
}

Tensor Stack::forward(ConstTensorView x, StackState& state) const {
  check::present("Stack::forward", "x", x);
  Tensor y(x.shape(), dtype(), device());
  finished(device(), [&](Stream& stream) { forward(x, state, y, stream); });
  return y;
}

Tensor Stack::forward(ConstTensorView x) const {
  check::rank("Stack::forward", "x", x, 3);
  StackState state = make_state(x.dim(0));
  return forward(x, state);
}

}  // namespace mamba
