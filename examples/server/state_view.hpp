// Numbers that show what is in a state.
#pragma once

#include <cstdint>

#include <mamba/state.hpp>

#include "fields.hpp"

namespace server {

// {"layers": [{"layer": 0, "conv": ..., "ssm": ...}, ...]}: root mean squares.
Json layers_of(const mamba::StackState& state);
// The same with the Euclidean norm of the difference of two states of one model.
Json difference_of(const mamba::StackState& a, const mamba::StackState& b);
// {"layer", "channels", "rows", "columns", "values": [[...], ...]}: the ssm of a layer, at most 64
// by 64, each value the root mean square of neighbouring channels (rows) and numbers of a channel's
// state (columns), so that two maps of one model can be laid over each other.
Json map_of(const mamba::StackState& state, std::int64_t layer);

}  // namespace server
