// A state as layers: a MambaState is one, a StackState has any number. And a layer as tensors.
#pragma once

#include <cstddef>
#include <type_traits>

#include <mamba/state.hpp>

namespace mamba {

inline std::size_t layer_count(const MambaState&) { return 1; }
inline std::size_t layer_count(const StackState& state) { return state.layers.size(); }

template <class State>
auto& layer_of(State& state, std::size_t i) {
  if constexpr (std::is_same_v<std::remove_const_t<State>, StackState>) {
    return state.layers[i];
  } else {
    static_cast<void>(i);
    return state;
  }
}

// f(layer)
template <class State, class F>
void each_layer(State& state, const F& f) {
  for (std::size_t i = 0; i < layer_count(state); ++i) f(layer_of(state, i));
}

// f(layer of a, layer of b)
template <class A, class B, class F>
void each_layer(A& a, B& b, const F& f) {
  for (std::size_t i = 0; i < layer_count(a); ++i) f(layer_of(a, i), layer_of(b, i));
}

// A new state whose layers are f(layer).
template <class F>
MambaState map_layers(const MambaState& state, const F& f) {
  return f(state);
}
template <class F>
StackState map_layers(const StackState& state, const F& f) {
  StackState result;
  result.layers.reserve(state.layers.size());
  for (const MambaState& layer : state.layers) result.layers.push_back(f(layer));
  return result;
}

// A new layer whose tensors are f(what it is, tensor).
template <class F>
MambaState map_tensors(const MambaState& layer, const F& f) {
  MambaState result;
  for (const StateTensor& one : state_tensors) result.*one.tensor = f(one, layer.*one.tensor);
  return result;
}

}  // namespace mamba
