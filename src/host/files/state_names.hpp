// The names that the tensors of a state have in files: layers.N.NAME.
#pragma once

#include <fmt/format.h>

#include <string>

#include <mamba/state.hpp>

namespace mamba {

constexpr const char* layer_prefix = "layers.";

inline std::string name_in_file(std::size_t layer, const StateTensor& one) {
  return fmt::format("{}{}.{}", layer_prefix, layer, one.name);
}

// f(name, tensor) for all of a stack; State is StackState or const StackState.
template <class State, class F>
void each_in_file(State& state, const F& f) {
  for (std::size_t i = 0; i < state.layers.size(); ++i) {
    for (const StateTensor& one : state_tensors) {
      f(name_in_file(i, one), state.layers[i].*one.tensor);
    }
  }
}

}  // namespace mamba
