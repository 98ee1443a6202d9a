// States as they are made, and going back to a step; their verbs are in state_verbs.cpp.
#include <mamba/state.hpp>

#include <algorithm>
#include <string>

#include <mamba/check.hpp>

#include "host/core/finished.hpp"
#include "host/model/state/state_checks.hpp"

namespace mamba {

void check_whole(const char* where, const MambaState& state) {
  const Tensor* first = nullptr;  // says how many rows there are, and where
  for (const StateTensor& one : state_tensors) {
    const Tensor& tensor = state.*one.tensor;
    check::rank(where, one.name, tensor, 3);
    if (first == nullptr) first = &tensor;
    if (!one.f32) check::storage(where, one.name, tensor);
    check::is(where, one.name, tensor, tensor.shape().with(0, first->dim(0)),
              one.f32 ? DType::f32 : tensor.dtype(), first->device());
  }
}

MambaState::MambaState(const LayerConfig& config, std::int64_t batch, DType dtype, Device device) {
  const LayerConfig c = config.resolved();
  check::range("MambaState", "batch", batch, 0, INT32_MAX);  // row maps are i32
  check::storage("MambaState", "dtype", dtype);
  for (const StateTensor& one : state_tensors) {
    this->*one.tensor = Tensor::zeros(one.shape(c, batch), one.f32 ? DType::f32 : dtype, device);
  }
}

std::int64_t MambaState::bytes() const {
  std::int64_t sum = 0;
  each([&](const char*, const Tensor& tensor) { sum += tensor.bytes(); });
  return sum;
}

StackState::StackState(const LayerConfig& config, std::int64_t n_layer, std::int64_t batch,
                       DType dtype, Device device) {
  check::range("StackState", "n_layer", n_layer, 0, std::int64_t{1} << 20);
  for (std::int64_t i = 0; i < n_layer; ++i) layers.emplace_back(config, batch, dtype, device);
}

std::int64_t StackState::bytes() const {
  std::int64_t sum = 0;
  for (const MambaState& layer : layers) sum += layer.bytes();
  return sum;
}

// ---- going back, and other layouts ------------------------------------------------------------

void LayerSteps::prepare(const MambaState& like, std::int64_t batch, std::int64_t time) {
  check_whole("LayerSteps::prepare", like);
  check::range("LayerSteps::prepare", "batch", batch, 0, INT32_MAX);
  check::range("LayerSteps::prepare", "time", time, 0, INT64_MAX);
  for (const StateTensor& one : state_tensors) {
    Tensor& tensor = this->*one.tensor;
    const Tensor& step = like.*one.tensor;
    const Shape wanted{batch, time, step.dim(1), step.dim(2)};
    if (tensor.shape() != wanted || tensor.dtype() != step.dtype() ||
        tensor.device() != step.device()) {
      tensor = Tensor(wanted, step.dtype(), step.device());
    }
  }
}

void LayerSteps::check_restore(const char* where, std::int64_t t, const MambaState& state,
                               const Stream& stream) const {
  std::int64_t time = INT64_MAX;
  each([&](const char* name, const Tensor& all) {
    if (all.rank() != 4) {  // a name takes memory
      check::rank(where, (std::string("steps.") + name).c_str(), all, 4);
    }
    time = std::min(time, all.dim(1));
  });
  check::range(where, "t", t, 0, time - 1);
  for (const StateTensor& one : state_tensors) {
    const Tensor& all = this->*one.tensor;
    check::is(where, one.name, state.*one.tensor, {all.dim(0), all.dim(2), all.dim(3)},
              one.f32 ? DType::f32 : all.dtype(), all.device());
  }
  check::stream(where, stream, ssm.device());
}

void LayerSteps::restore(std::int64_t t, MambaState& state, Stream& stream) const {
  check_restore("LayerSteps::restore", t, state, stream);
  const auto step = [&](const Tensor& all) { return all.view().steps(t, 1); };
  const auto as_step = [](Tensor& tensor) {
    return tensor.view().reshape({tensor.dim(0), 1, tensor.dim(1), tensor.dim(2)});
  };
  for (const StateTensor& one : state_tensors) {
    copy(step(this->*one.tensor), as_step(state.*one.tensor), stream);
  }
}

namespace {

// [batch, heads, head_dim, d_state]
Shape by_heads_shape(const Tensor& ssm, const LayerConfig& config) {
  const LayerConfig c = config.resolved();
  constexpr const char* where = "by_heads";
  if (c.head_dim == 0) throw ArgumentError(where, "config", "a layer with heads", name_of(c.mixer));
  check::rank(where, "ssm", ssm, 3);
  check::shape(where, "ssm", ssm, {ssm.dim(0), c.d_inner, c.d_state});
  return {ssm.dim(0), c.heads(), c.head_dim, c.d_state};
}

}  // namespace

TensorView by_heads(Tensor& ssm, const LayerConfig& config) {
  return ssm.view().reshape(by_heads_shape(ssm, config));
}

ConstTensorView by_heads(const Tensor& ssm, const LayerConfig& config) {
  return ssm.view().reshape(by_heads_shape(ssm, config));
}

namespace {

// Copies `width` columns of the last dimension of [batch, channels, *], from column `from_first` to
// column `to_first`.
void copy_columns(const Tensor& from, std::int64_t from_first, Tensor& to, std::int64_t to_first,
                  std::int64_t width) {
  finished(from.device(), [&](Stream& stream) {
    copy(from.view().columns(from_first, width), to.view().columns(to_first, width), stream);
  });
}

}  // namespace

Tensor to_wide_conv_state(const Tensor& conv) {
  check::rank("to_wide_conv_state", "conv", conv, 3);
  const std::int64_t width = conv.dim(2);
  Tensor wide = Tensor::zeros(conv.shape().with(2, width + 1), conv.dtype(), conv.device());
  copy_columns(conv, 0, wide, 1, width);
  return wide;
}

Tensor from_wide_conv_state(const Tensor& wide) {
  check::rank("from_wide_conv_state", "wide", wide, 3);
  check::range("from_wide_conv_state", "width", wide.dim(2), 1, std::int64_t{1} << 20);
  const std::int64_t width = wide.dim(2) - 1;
  Tensor conv(wide.shape().with(2, width), wide.dtype(), wide.device());
  copy_columns(wide, 1, conv, 0, width);
  return conv;
}

}  // namespace mamba
