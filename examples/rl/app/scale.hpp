// Many runs of mamba-rl: horizons, seeds and controllers.
#pragma once

#include "rl/app/flags.hpp"

// The exit code.
int scale(const Flags& flags);
