// The verbs of states: each is written once, for a layer as a state of one and for a stack.
#include <fmt/format.h>

#include <iterator>
#include <utility>
#include <vector>

#include <mamba/check.hpp>
#include <mamba/ops.hpp>
#include <mamba/state.hpp>

#include "host/core/finished.hpp"
#include "host/model/state/listed_rows.hpp"
#include "host/model/state/state_checks.hpp"
#include "host/model/state/state_layers.hpp"

namespace mamba {

namespace {

// What errors call the verbs. Those that make a new state layer by layer are named after the
// layer's, of a stack too.
template <class State>
struct Names;
template <>
struct Names<MambaState> {
  static constexpr const char *copy_from = "MambaState::copy_from", *reset = "MambaState::reset",
                              *scatter = "MambaState::scatter", *concat = "MambaState::concat";
};
template <>
struct Names<StackState> {
  static constexpr const char *copy_from = "StackState::copy_from", *reset = "StackState::reset",
                              *scatter = "StackState::scatter", *concat = "StackState::concat";
};
constexpr const char *to_name = "MambaState::to", *gather_name = "MambaState::gather",
                     *repeat_name = "MambaState::repeat";

Tensor rows_like(const Tensor& tensor, std::int64_t rows) {
  return Tensor(tensor.shape().with(0, rows), tensor.dtype(), tensor.device());
}

// ---- checks -----------------------------------------------------------------------------------

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

// All layers of a stack have equally many rows, on one device.
void check_layers_whole(const char* where, const MambaState& state) { check_whole(where, state); }
void check_layers_whole(const char* where, const StackState& state) {
  for (const MambaState& layer : state.layers) {
    check_whole(where, layer);
    const StateTensor& one = *std::rbegin(state_tensors);  // the others of the layer are like it
    const Tensor& tensor = layer.*one.tensor;
    check::shape(where, one.name, tensor, tensor.shape().with(0, state.batch()));
    check::device(where, one.name, tensor, state.device());
  }
}

void check_layer_count(const char*, const MambaState&, const MambaState&) {}
void check_layer_count(const char* where, const StackState& state, const StackState& like) {
  if (state.layers.size() != like.layers.size()) {
    throw ArgumentError(where, "layers", fmt::format("{} layers", like.layers.size()),
                        fmt::format("{}", state.layers.size()));
  }
}

template <class State>
void check_parts(const char* where, const std::vector<const State*>& parts) {
  for (const State* part : parts) {
    if (part == nullptr) throw ArgumentError(where, "parts", "states", "a null pointer");
  }
}

}  // namespace

// ---- ordered on a stream ----------------------------------------------------------------------

template <class State>
State StateVerbs<State>::clone(Stream& stream) const {
  return map_layers(self(), [&](const MambaState& layer) {
    return map_tensors(layer, [&](const StateTensor&, const Tensor& t) { return t.clone(stream); });
  });
}

template <class State>
void StateVerbs<State>::copy_from(const State& other, Stream& stream) {
  constexpr const char* where = Names<State>::copy_from;
  check_layer_count(where, other, self());
  each_layer(other, self(),
             [&](const MambaState& from, const MambaState& to) { check_same(where, from, to); });
  each_layer(other, self(), [&](const MambaState& from, MambaState& to) {
    for (const StateTensor& one : state_tensors) copy(from.*one.tensor, to.*one.tensor, stream);
  });
}

template <class State>
void StateVerbs<State>::reset(Stream& stream) {
  check_layers_whole(Names<State>::reset, self());
  check::stream(Names<State>::reset, stream, self().device());
  each_layer(self(), [&](MambaState& layer) {
    layer.each([&](const char*, Tensor& tensor) { zero(tensor, stream); });
  });
}

template <class State>
void StateVerbs<State>::reset(ConstTensorView mask, Stream& stream) {
  constexpr const char* where = Names<State>::reset;
  check_layers_whole(where, self());
  check::stream(where, stream, self().device());
  each_layer(self(), [&](const MambaState& layer) {
    check::is(where, "mask", mask, {layer.batch()}, DType::i32, layer.device());
  });
  each_layer(self(), [&](MambaState& layer) {
    layer.each([&](const char*, Tensor& tensor) {
      ZeroRows rows;
      rows.mask = mask;
      rows.view = tensor;
      run(rows, stream);
    });
  });
}

template <class State>
State StateVerbs<State>::to(Device device, Stream& stream) const {
  return map_layers(self(), [&](const MambaState& layer) {
    return map_tensors(layer, [&](const StateTensor&, const Tensor& tensor) {
      return tensor.to(device, tensor.dtype(), stream);
    });
  });
}

template <class State>
State StateVerbs<State>::to(Device device, DType dtype, Stream& stream) const {
  return map_layers(self(), [&](const MambaState& layer) {
    check::storage(to_name, "dtype", dtype);
    return map_tensors(layer, [&](const StateTensor& one, const Tensor& tensor) {
      return tensor.to(device, one.f32 ? DType::f32 : dtype, stream);
    });
  });
}

template <class State>
State StateVerbs<State>::gather(ConstTensorView rows, Stream& stream) const {
  return map_layers(self(), [&](const MambaState& layer) {
    check_whole(gather_name, layer);
    check::rank(gather_name, "rows", rows, 1);
    return map_tensors(layer, [&](const StateTensor&, const Tensor& tensor) {
      Tensor taken = rows_like(tensor, rows.dim(0));
      CopyRows op;
      op.from = tensor;
      op.from_rows = rows;
      op.to = taken;
      run(op, stream);
      return taken;
    });
  });
}

template <class State>
void StateVerbs<State>::scatter(const State& source, ConstTensorView rows, Stream& stream) {
  constexpr const char* where = Names<State>::scatter;
  if (&source == &self()) throw ArgumentError(where, "source", "another state", "this one");
  check_layer_count(where, source, self());
  check_layers_whole(where, self());
  check::stream(where, stream, self().device());
  each_layer(source, self(), [&](const MambaState& from, const MambaState& to) {
    check_row_shape(where, from, to);
    check::is(where, "rows", rows, {from.batch()}, DType::i32, to.device());
  });
  each_layer(source, self(), [&](const MambaState& from, MambaState& to) {
    for (const StateTensor& one : state_tensors) {
      CopyRows op;
      op.from = from.*one.tensor;
      op.to = to.*one.tensor;
      op.to_rows = rows;
      run(op, stream);
    }
  });
}

template <class State>
State StateVerbs<State>::gather(const RowList& rows, Stream& stream) const {
  const ListedRows listed(gather_name, rows, stream);
  each_layer(self(), [&](const MambaState& layer) {
    check_whole(gather_name, layer);
    listed.check_taken(layer.batch());
  });
  return gather(listed.view(), stream);
}

template <class State>
void StateVerbs<State>::scatter(const State& source, const RowList& rows, Stream& stream) {
  const ListedRows listed(Names<State>::scatter, rows, stream);
  check_layers_whole(Names<State>::scatter, self());
  bool checked = false;  // for the first layer: all have as many rows
  each_layer(self(), [&](const MambaState& layer) {
    if (!std::exchange(checked, true)) listed.check_put(layer.batch());
  });
  scatter(source, listed.view(), stream);
}

template <class State>
State StateVerbs<State>::repeat(std::int64_t k, Stream& stream) const {
  return map_layers(self(), [&](const MambaState& layer) {
    check::range(repeat_name, "k", k, 0, std::int64_t{1} << 31);
    check_whole(repeat_name, layer);
    const std::int64_t batch = layer.batch();
    return map_tensors(layer, [&](const StateTensor&, const Tensor& tensor) {
      Tensor spread = rows_like(tensor, batch * k);
      if (spread.count() == 0) return spread;
      const std::int64_t width = tensor.count() / batch;
      const ConstTensorView once = tensor.view().reshape({batch, 1, width});
      const TensorView all = spread.view().reshape({batch, k, width});
      for (std::int64_t i = 0; i < k; ++i) copy(once, all.steps(i, 1), stream);
      return spread;
    });
  });
}

namespace {

MambaState joined(const std::vector<const MambaState*>& parts, Stream& stream) {
  constexpr const char* where = Names<MambaState>::concat;
  check_whole(where, *parts.front());
  std::int64_t rows = 0;
  for (const MambaState* part : parts) {
    check_row_shape(where, *part, *parts.front());
    rows += part->batch();
  }
  return map_tensors(*parts.front(), [&](const StateTensor& one, const Tensor& like) {
    Tensor all = rows_like(like, rows);
    std::int64_t first = 0;
    for (const MambaState* part : parts) {
      copy(part->*one.tensor, all.view().rows(first, part->batch()), stream);
      first += part->batch();
    }
    return all;
  });
}

StackState joined(const std::vector<const StackState*>& parts, Stream& stream) {
  StackState result;
  for (std::size_t i = 0; i < parts.front()->layers.size(); ++i) {
    std::vector<const MambaState*> layers;
    layers.reserve(parts.size());
    for (const StackState* part : parts) layers.push_back(&part->layers[i]);
    result.layers.push_back(joined(layers, stream));
  }
  return result;
}

}  // namespace

template <class State>
State StateVerbs<State>::concat(const std::vector<const State*>& parts, Stream& stream) {
  constexpr const char* where = Names<State>::concat;
  if (parts.empty()) throw ArgumentError(where, "parts", "at least one state", "none");
  check_parts(where, parts);
  for (const State* part : parts) check_layer_count(where, *part, *parts.front());
  return joined(parts, stream);
}

// ---- the same, done when the call returns -----------------------------------------------------

template <class State>
State StateVerbs<State>::clone() const {
  return finished(self().device(), [&](Stream& stream) { return clone(stream); });
}
template <class State>
void StateVerbs<State>::copy_from(const State& other) {
  finished(self().device(), [&](Stream& stream) { copy_from(other, stream); });
}
template <class State>
void StateVerbs<State>::reset() {
  finished(self().device(), [&](Stream& stream) { reset(stream); });
}
template <class State>
void StateVerbs<State>::reset(ConstTensorView mask) {
  finished(self().device(), [&](Stream& stream) { reset(mask, stream); });
}
template <class State>
State StateVerbs<State>::to(Device device) const {
  return finished_move(self().device(), device, [&](Stream& stream) { return to(device, stream); });
}
template <class State>
State StateVerbs<State>::to(Device device, DType dtype) const {
  return finished_move(self().device(), device,
                       [&](Stream& stream) { return to(device, dtype, stream); });
}
template <class State>
State StateVerbs<State>::gather(ConstTensorView rows) const {
  return finished(self().device(), [&](Stream& stream) { return gather(rows, stream); });
}
template <class State>
void StateVerbs<State>::scatter(const State& source, ConstTensorView rows) {
  finished(self().device(), [&](Stream& stream) { scatter(source, rows, stream); });
}
template <class State>
State StateVerbs<State>::gather(const RowList& rows) const {
  return finished(self().device(), [&](Stream& stream) { return gather(rows, stream); });
}
template <class State>
void StateVerbs<State>::scatter(const State& source, const RowList& rows) {
  finished(self().device(), [&](Stream& stream) { scatter(source, rows, stream); });
}
template <class State>
State StateVerbs<State>::repeat(std::int64_t k) const {
  return finished(self().device(), [&](Stream& stream) { return repeat(k, stream); });
}
template <class State>
State StateVerbs<State>::concat(const std::vector<const State*>& parts) {
  check_parts(Names<State>::concat, parts);
  const Device device = parts.empty() ? Device::cpu() : parts.front()->device();
  return finished(device, [&](Stream& stream) { return concat(parts, stream); });
}

template class StateVerbs<MambaState>;
template class StateVerbs<StackState>;

}  // namespace mamba
