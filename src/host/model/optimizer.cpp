#include <mamba/optimizer.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <mamba/check.hpp>
#include <mamba/detail/fused_ops.hpp>
#include <mamba/train_ops.hpp>

#include "host/core/finished.hpp"
#include "host/model/mixers.hpp"
#include "host/model/model_checks.hpp"

namespace mamba {

namespace {

// Adds what has a gradient.
void add(std::vector<Parameter>& list, const std::string& name, Tensor& weight,
         const Tensor& gradient, bool decays) {
  if (gradient) list.push_back({name, weight, gradient, decays});
}

// `prefix` stands before the published name within.
void add(std::vector<Parameter>& list, const std::string& prefix, Layer& layer,
         const LayerWeights& gradients) {
  for (const detail::LayerWeight& one : detail::layer_weights(layer.config(), DType::f32)) {
    if (!one.wanted) continue;
    add(list, prefix + one.name, layer.weights().*one.tensor, gradients.*one.tensor, one.decays);
  }
}

void add(std::vector<Parameter>& list, Stack& stack, const StackWeights& gradients) {
  check_gradients("parameters", stack, gradients);
  for (std::size_t i = 0; i < stack.size(); ++i) {
    const std::string prefix = fmt::format("backbone.layers.{}.", i);
    add(list, prefix + "norm.weight", stack.norm(i), gradients.norms[i], false);
    add(list, prefix + "mixer.", stack.layer(i), gradients.layers[i]);
  }
  add(list, "backbone.norm_f.weight", stack.norm(stack.size()), gradients.norm_f, false);
}

// Of a layer's weights its mixer says which decay; of a model's others, the embedding and the head.
bool decays(const detail::LayerWeightList& layer, const std::string& name, const Tensor& weight) {
  const detail::LayerWeight* one = weight_named(name, layer);
  return one != nullptr ? one->decays : weight.rank() == 2;
}

}  // namespace

std::vector<Parameter> parameters(Layer& layer, const LayerWeights& gradients) {
  check_gradients("parameters", layer, gradients);
  std::vector<Parameter> list;
  add(list, "", layer, gradients);
  return list;
}

std::vector<Parameter> parameters(Stack& stack, const StackWeights& gradients) {
  std::vector<Parameter> list;
  add(list, stack, gradients);
  return list;
}

std::vector<Parameter> parameters(LanguageModel& model, const LanguageModelWeights& gradients) {
  check_gradients("parameters", model, gradients);
  std::vector<const Tensor*> all;
  LanguageModelWeights::each(gradients, model.config(), DType::f32,
                             [&](const std::string&, const Tensor& tensor, const Shape&, DType) {
                               all.push_back(&tensor);
                             });
  const detail::LayerWeightList layer = detail::layer_weights(model.config().layer, DType::f32);
  std::vector<Parameter> list;
  std::size_t i = 0;
  model.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
    add(list, name, tensor, *all[i++], decays(layer, name, tensor));
  });
  return list;
}

AdamW::AdamW(std::vector<Parameter> parameters, const AdamWOptions& options) : options_(options) {
  constexpr const char* where = "AdamW";
  if (parameters.empty()) throw ArgumentError(where, "parameters", "at least one", "none");
  std::set<std::string> names;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    check::storage(where, p.name.c_str(), p.weight);
    check::is(where, ("gradient of " + p.name).c_str(), p.gradient, p.weight.shape(), DType::f32,
              parameters[0].weight.device());
    check::device(where, p.name.c_str(), p.weight, parameters[0].weight.device());
    if (!p.weight.is_dense() || !p.gradient.is_dense()) {
      throw ArgumentError(where, p.name, "dense tensors", "a strided view");
    }
    if (!names.insert(p.name).second) {
      throw ArgumentError(where, p.name, "every name once", "it twice");
    }
  }
  const Device device = parameters[0].weight.device();
  finished(device, [&](Stream& stream) {
    for (Parameter& p : parameters) {
      Slot slot;
      slot.m = Tensor::zeros(p.weight.shape(), DType::f32, device);
      slot.v = Tensor::zeros(p.weight.shape(), DType::f32, device);
      if (p.weight.dtype() != DType::f32) {
        slot.master = Tensor(p.weight.shape(), DType::f32, device);
        copy(p.weight, slot.master, stream);
      }
      slot.parameter = std::move(p);
      slots_.push_back(std::move(slot));
    }
  });
  squares_ = Tensor::zeros({1}, DType::f32, device);
  for (Slot& slot : slots_) {
    const Parameter& p = slot.parameter;
    SumSquares sum;
    sum.x = p.gradient;
    sum.y = squares_;
    sum.accumulate = !sums_.empty();
    sums_.push_back(sum);
    AdamWStep update;
    update.weight = slot.master ? TensorView(slot.master) : p.weight;
    if (slot.master) update.stored = p.weight;
    update.gradient = p.gradient;
    update.m = slot.m;
    update.v = slot.v;
    update.squares = squares_;
    update.max_norm = options.max_norm;
    update.beta1 = options.beta1;
    update.beta2 = options.beta2;
    update.epsilon = options.epsilon;
    update.weight_decay = p.decay ? options.weight_decay : 0;
    updates_.push_back(update);
  }
}

void LossScale::update(bool finite) {
  if (finite && ++good_steps < patience) return;
  value = std::clamp(finite ? 2 * value : value / 2, smallest, largest);
  good_steps = 0;
}

void AdamW::step(float learning_rate, Stream& stream, float loss_scale) {
  if (!(loss_scale > 0) || !std::isfinite(loss_scale)) {
    throw ArgumentError("AdamW::step", "loss_scale", "a finite number above 0",
                        fmt::format("{}", loss_scale));
  }
  check_made("AdamW::step");
  last_counts_ = false;
  loss_scale_ = loss_scale;
  detail::run_all(sums_, stream);
  for (AdamWStep& op : updates_) {
    op.loss_scale = loss_scale;
    op.learning_rate = learning_rate;
    op.step = steps_ + 1;
  }
  detail::run_all(updates_, stream);
  ++steps_;
  last_counts_ = true;
  if (squares_.device().is_cpu()) count(*squares_.data<float>());
}

// Takes the last step back where it changed nothing.
void AdamW::count(float squares) {
  if (!std::isfinite(squares) && std::exchange(last_counts_, false)) --steps_;
}

void AdamW::check_made(const char* where) const {
  check::present(where, "optimizer", squares_);  // absent where it was moved from
}

namespace {

float read(const Tensor& one, Stream& stream) {
  stream.synchronize();
  return one.to(Device::cpu()).data<float>()[0];
}

}  // namespace

float AdamW::gradient_norm(Stream& stream) {
  check_made("AdamW::gradient_norm");
  const float squares = read(squares_, stream);
  count(squares);
  return std::sqrt(squares) / loss_scale_;
}

bool AdamW::update_loss_scale(LossScale& scale, Stream& stream) {
  const bool finite = std::isfinite(gradient_norm(stream));
  scale.update(finite);
  return finite;
}

std::string AdamW::first_not_finite(Stream& stream) const {
  check_made("AdamW::first_not_finite");
  Tensor squares = Tensor::zeros({1}, DType::f32, squares_.device());
  for (const Slot& slot : slots_) {
    SumSquares sum;
    sum.x = slot.parameter.gradient;
    sum.y = squares;
    run(sum, stream);
    if (!std::isfinite(read(squares, stream))) return slot.parameter.name;
  }
  return "";
}

namespace {

template <class Slots, class F>
void each_of(Slots& slots, const F& f) {
  for (auto& slot : slots) {
    f("weight." + slot.parameter.name, slot.parameter.weight);
    if (slot.master) f("master." + slot.parameter.name, slot.master);
    f("m." + slot.parameter.name, slot.m);
    f("v." + slot.parameter.name, slot.v);
  }
}

}  // namespace

void AdamW::each_tensor(const std::function<void(const std::string&, ConstTensorView)>& f) const {
  each_of(slots_, f);
}

void AdamW::each_tensor(const std::function<void(const std::string&, TensorView)>& f) {
  each_of(slots_, f);
}

void AdamW::set_steps(std::int64_t steps) {
  check::range("AdamW::set_steps", "steps", steps, 0, std::int64_t{1} << 40);
  steps_ = steps;
  last_counts_ = false;
}

float warmup_cosine(std::int64_t step, std::int64_t warmup, std::int64_t total, float peak,
                    float last) {
  if (step < warmup) return peak * static_cast<float>(step) / static_cast<float>(warmup);
  if (step >= total) return last;
  const double done = static_cast<double>(step - warmup) / static_cast<double>(total - warmup);
  const double share = 0.5 * (1 + std::cos(3.141592653589793 * done));
  return static_cast<float>(last + (static_cast<double>(peak) - last) * share);
}

}  // namespace mamba
