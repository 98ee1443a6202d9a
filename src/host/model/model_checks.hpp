// Checks of states and gradients, for every call that takes some.
#pragma once

#include <cstdint>

#include <mamba/language_model.hpp>
#include <mamba/layer.hpp>
#include <mamba/stack.hpp>

namespace mamba {

// Throws, in the name of `where`, if `state` is not one of this layer's or stack's, of so many
// rows; of a stack, also one in the memory of another device, `device`.
void check_state(const char* where, const Layer& layer, const MambaState& state, std::int64_t rows);
void check_state(const char* where, const Stack& stack, const StackState& state, std::int64_t rows);
void check_state(const char* where, const Stack& stack, const StackState& state, std::int64_t rows,
                 Device device);

// Throws, in the name of `where`, if what is there of `gradients` is not f32 of the weights'
// shapes.
void check_gradients(const char* where, const Layer& layer, const LayerWeights& gradients);
void check_gradients(const char* where, const Stack& stack, const StackWeights& gradients);
void check_gradients(const char* where, const LanguageModel& model,
                     const LanguageModelWeights& gradients);

}  // namespace mamba
