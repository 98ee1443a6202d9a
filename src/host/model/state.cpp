#include <mamba/state.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include <mamba/check.hpp>
#include <mamba/ops.hpp>

#include "host/core/finished.hpp"

namespace mamba {

namespace {

Tensor rows_like(const Tensor& tensor, std::int64_t rows) {
  return Tensor(tensor.shape().with(0, rows), tensor.dtype(), tensor.device());
}

// The same shapes, dtypes and device.
void check_same(const char* where, const MambaState& state, const MambaState& like) {
  for (const StateTensor& one : state_tensors) {
    const Tensor& expected = like.*one.tensor;
    check::is(where, one.name, state.*one.tensor, expected.shape(), expected.dtype(),
              expected.device());
  }
}

// Everything but the number of rows is the same in both.
void check_row_shape(const char* where, const MambaState& state, const MambaState& like) {
  const Tensor* first = nullptr;  // says how many rows there are
  for (const StateTensor& one : state_tensors) {
    const Tensor& tensor = state.*one.tensor;
    const Tensor& expected = like.*one.tensor;
    check::present(where, one.name, expected);
    check::present(where, one.name, tensor);
    if (first == nullptr) first = &tensor;
    check::is(where, one.name, tensor, expected.shape().with(0, first->dim(0)), expected.dtype(),
              like.device());
  }
}

// One batch of rows on one device, as every verb leaves it.
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

// The same for all layers, which have equally many rows.
void check_whole(const char* where, const StackState& state) {
  for (const MambaState& layer : state.layers) {
    check_whole(where, layer);
    const StateTensor& one = *std::rbegin(state_tensors);  // the others are like it
    const Tensor& tensor = layer.*one.tensor;
    check::shape(where, one.name, tensor, tensor.shape().with(0, state.batch()));
    check::device(where, one.name, tensor, state.device());
  }
}

void check_layers(const char* where, const StackState& state, const StackState& like) {
  if (state.layers.size() != like.layers.size()) {
    throw ArgumentError(where, "layers", fmt::format("{} layers", like.layers.size()),
                        fmt::format("{}", state.layers.size()));
  }
}

}  // namespace

// ---- one layer --------------------------------------------------------------------------------

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

MambaState MambaState::clone(Stream& stream) const {
  MambaState copy;
  for (const StateTensor& one : state_tensors) {
    copy.*one.tensor = (this->*one.tensor).clone(stream);
  }
  return copy;
}

void MambaState::copy_from(const MambaState& other, Stream& stream) {
  check_same("MambaState::copy_from", other, *this);
  for (const StateTensor& one : state_tensors) copy(other.*one.tensor, this->*one.tensor, stream);
}

void MambaState::reset(Stream& stream) {
  check_whole("MambaState::reset", *this);
  check::stream("MambaState::reset", stream, device());
  each([&](const char*, Tensor& tensor) { zero(tensor, stream); });
}

void MambaState::reset(ConstTensorView mask, Stream& stream) {
  check_whole("MambaState::reset", *this);
  check::stream("MambaState::reset", stream, device());
  check::is("MambaState::reset", "mask", mask, {batch()}, DType::i32, device());
  each([&](const char*, Tensor& tensor) {
    ZeroRows rows;
    rows.mask = mask;
    rows.view = tensor;
    run(rows, stream);
  });
}

MambaState MambaState::to(Device device, DType dtype, Stream& stream) const {
  check::storage("MambaState::to", "dtype", dtype);
  MambaState moved;
  for (const StateTensor& one : state_tensors) {
    moved.*one.tensor = (this->*one.tensor).to(device, one.f32 ? DType::f32 : dtype, stream);
  }
  return moved;
}

MambaState MambaState::gather(ConstTensorView rows, Stream& stream) const {
  check_whole("MambaState::gather", *this);
  check::rank("MambaState::gather", "rows", rows, 1);
  MambaState result;
  for (const StateTensor& one : state_tensors) {
    const Tensor& from = this->*one.tensor;
    Tensor& to = result.*one.tensor;
    to = rows_like(from, rows.dim(0));
    CopyRows op;
    op.from = from;
    op.from_rows = rows;
    op.to = to;
    run(op, stream);
  }
  return result;
}

void MambaState::scatter(const MambaState& source, ConstTensorView rows, Stream& stream) {
  check_whole("MambaState::scatter", *this);
  check_row_shape("MambaState::scatter", source, *this);
  check::stream("MambaState::scatter", stream, device());
  check::is("MambaState::scatter", "rows", rows, {source.batch()}, DType::i32, device());
  for (const StateTensor& one : state_tensors) {
    CopyRows op;
    op.from = source.*one.tensor;
    op.to = this->*one.tensor;
    op.to_rows = rows;
    run(op, stream);
  }
}

MambaState MambaState::repeat(std::int64_t k, Stream& stream) const {
  check::range("MambaState::repeat", "k", k, 0, std::int64_t{1} << 31);
  check_whole("MambaState::repeat", *this);
  MambaState result;
  for (const StateTensor& one : state_tensors) {
    const Tensor& from = this->*one.tensor;
    Tensor& to = result.*one.tensor;
    to = rows_like(from, batch() * k);
    if (to.count() == 0) continue;
    const std::int64_t width = from.count() / batch();
    const ConstTensorView once = from.view().reshape({batch(), 1, width});
    const TensorView all = to.view().reshape({batch(), k, width});
    for (std::int64_t i = 0; i < k; ++i) copy(once, all.steps(i, 1), stream);
  }
  return result;
}

namespace {

template <class State>
void check_parts(const char* where, const std::vector<const State*>& parts) {
  for (const State* part : parts) {
    if (part == nullptr) throw ArgumentError(where, "parts", "states", "a null pointer");
  }
}

}  // namespace

MambaState MambaState::concat(const std::vector<const MambaState*>& parts, Stream& stream) {
  if (parts.empty()) {
    throw ArgumentError("MambaState::concat", "parts", "at least one state", "none");
  }
  check_parts("MambaState::concat", parts);
  check_whole("MambaState::concat", *parts.front());
  std::int64_t rows = 0;
  for (const MambaState* part : parts) {
    check_row_shape("MambaState::concat", *part, *parts.front());
    rows += part->batch();
  }
  MambaState result;
  for (const StateTensor& one : state_tensors) {
    Tensor& to = result.*one.tensor;
    to = rows_like(parts.front()->*one.tensor, rows);
    std::int64_t first = 0;
    for (const MambaState* part : parts) {
      copy(part->*one.tensor, to.view().rows(first, part->batch()), stream);
      first += part->batch();
    }
  }
  return result;
}

// ---- a stack ------------------------------------------------------------------------------------

namespace {

// result.layers[i] = f(layers[i])
template <class F>
StackState map_layers(const StackState& state, F&& f) {
  StackState result;
  result.layers.reserve(state.layers.size());
  for (const MambaState& layer : state.layers) result.layers.push_back(f(layer));
  return result;
}

}  // namespace

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

StackState StackState::clone(Stream& stream) const {
  return map_layers(*this, [&](const MambaState& layer) { return layer.clone(stream); });
}

void StackState::copy_from(const StackState& other, Stream& stream) {
  check_layers("StackState::copy_from", other, *this);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    check_same("StackState::copy_from", other.layers[i], layers[i]);
  }
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i].copy_from(other.layers[i], stream);
}

void StackState::reset(Stream& stream) {
  check_whole("StackState::reset", *this);
  check::stream("StackState::reset", stream, device());
  for (MambaState& layer : layers) layer.reset(stream);
}

void StackState::reset(ConstTensorView mask, Stream& stream) {
  check_whole("StackState::reset", *this);
  check::stream("StackState::reset", stream, device());
  for (MambaState& layer : layers) {
    check::is("StackState::reset", "mask", mask, {layer.batch()}, DType::i32, layer.device());
  }
  for (MambaState& layer : layers) layer.reset(mask, stream);
}

StackState StackState::to(Device target, DType dtype, Stream& stream) const {
  return map_layers(*this,
                    [&](const MambaState& layer) { return layer.to(target, dtype, stream); });
}

StackState StackState::gather(ConstTensorView rows, Stream& stream) const {
  return map_layers(*this, [&](const MambaState& layer) { return layer.gather(rows, stream); });
}

void StackState::scatter(const StackState& source, ConstTensorView rows, Stream& stream) {
  check_layers("StackState::scatter", source, *this);
  check_whole("StackState::scatter", *this);
  check::stream("StackState::scatter", stream, device());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    check_row_shape("StackState::scatter", source.layers[i], layers[i]);
    check::is("StackState::scatter", "rows", rows, {source.layers[i].batch()}, DType::i32,
              layers[i].device());
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    layers[i].scatter(source.layers[i], rows, stream);
  }
}

StackState StackState::repeat(std::int64_t k, Stream& stream) const {
  return map_layers(*this, [&](const MambaState& layer) { return layer.repeat(k, stream); });
}

StackState StackState::concat(const std::vector<const StackState*>& parts, Stream& stream) {
  if (parts.empty()) {
    throw ArgumentError("StackState::concat", "parts", "at least one state", "none");
  }
  check_parts("StackState::concat", parts);
  for (const StackState* part : parts) check_layers("StackState::concat", *part, *parts.front());
  StackState result;
  for (std::size_t i = 0; i < parts.front()->layers.size(); ++i) {
    std::vector<const MambaState*> layer_parts;
    for (const StackState* part : parts) layer_parts.push_back(&part->layers[i]);
    result.layers.push_back(MambaState::concat(layer_parts, stream));
  }
  return result;
}

// ---- the same, done when the call returns -------------------------------------------------------

MambaState MambaState::clone() const {
  return finished(device(), [&](Stream& stream) { return clone(stream); });
}
void MambaState::copy_from(const MambaState& other) {
  finished(device(), [&](Stream& stream) { copy_from(other, stream); });
}
void MambaState::reset() {
  finished(device(), [&](Stream& stream) { reset(stream); });
}
void MambaState::reset(ConstTensorView mask) {
  finished(device(), [&](Stream& stream) { reset(mask, stream); });
}
MambaState MambaState::to(Device target, DType dtype) const {
  return finished_move(device(), target, [&](Stream& stream) { return to(target, dtype, stream); });
}
MambaState MambaState::gather(ConstTensorView rows) const {
  return finished(device(), [&](Stream& stream) { return gather(rows, stream); });
}
void MambaState::scatter(const MambaState& source, ConstTensorView rows) {
  finished(device(), [&](Stream& stream) { scatter(source, rows, stream); });
}
MambaState MambaState::repeat(std::int64_t k) const {
  return finished(device(), [&](Stream& stream) { return repeat(k, stream); });
}
MambaState MambaState::concat(const std::vector<const MambaState*>& parts) {
  check_parts("MambaState::concat", parts);
  const Device device = parts.empty() ? Device::cpu() : parts.front()->device();
  return finished(device, [&](Stream& stream) { return concat(parts, stream); });
}
StackState StackState::clone() const {
  return finished(device(), [&](Stream& stream) { return clone(stream); });
}
void StackState::copy_from(const StackState& other) {
  finished(device(), [&](Stream& stream) { copy_from(other, stream); });
}
void StackState::reset() {
  finished(device(), [&](Stream& stream) { reset(stream); });
}
void StackState::reset(ConstTensorView mask) {
  finished(device(), [&](Stream& stream) { reset(mask, stream); });
}
StackState StackState::to(Device target, DType dtype) const {
  return finished_move(device(), target, [&](Stream& stream) { return to(target, dtype, stream); });
}
StackState StackState::gather(ConstTensorView rows) const {
  return finished(device(), [&](Stream& stream) { return gather(rows, stream); });
}
void StackState::scatter(const StackState& source, ConstTensorView rows) {
  finished(device(), [&](Stream& stream) { scatter(source, rows, stream); });
}
StackState StackState::repeat(std::int64_t k) const {
  return finished(device(), [&](Stream& stream) { return repeat(k, stream); });
}
StackState StackState::concat(const std::vector<const StackState*>& parts) {
  check_parts("StackState::concat", parts);
  const Device device = parts.empty() ? Device::cpu() : parts.front()->device();
  return finished(device, [&](Stream& stream) { return concat(parts, stream); });
}

// ---- going back, and the wide layout ------------------------------------------------------------

void StepStates::prepare(const MambaState& like, std::int64_t batch, std::int64_t time) {
  check_whole("StepStates::prepare", like);
  check::range("StepStates::prepare", "batch", batch, 0, INT32_MAX);
  check::range("StepStates::prepare", "time", time, 0, INT64_MAX);
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

void StepStates::check_restore(const char* where, std::int64_t t, const MambaState& state,
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

void StepStates::restore(std::int64_t t, MambaState& state, Stream& stream) const {
  check_restore("StepStates::restore", t, state, stream);
  const auto step = [&](const Tensor& all) { return all.view().steps(t, 1); };
  const auto as_step = [](Tensor& tensor) {
    return tensor.view().reshape({tensor.dim(0), 1, tensor.dim(1), tensor.dim(2)});
  };
  for (const StateTensor& one : state_tensors) {
    copy(step(this->*one.tensor), as_step(state.*one.tensor), stream);
  }
}

namespace {

// Copies `width` columns of the last dimension of [batch, d_inner, *], from column `from_first` to
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
