// What a run was configured with, out of its checkpoint: whoever looks at its agent need not repeat
// the flags that it was trained with.
#pragma once

#include <string>

#include "rl/ppo/trainer.hpp"

namespace mamba_rl {

// Device and threads are the caller's. A file that is no checkpoint of a run is an error that says
// what is missing in it.
TrainerOptions configuration_of(const std::string& checkpoint);

}  // namespace mamba_rl
