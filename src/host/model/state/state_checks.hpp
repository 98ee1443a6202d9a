// What the verbs of states and LayerSteps check alike.
#pragma once

#include <mamba/state.hpp>

namespace mamba {

// Throws, in the name of `where`, unless `state` is one batch of rows on one device, as every verb
// leaves it.
void check_whole(const char* where, const MambaState& state);

}  // namespace mamba
