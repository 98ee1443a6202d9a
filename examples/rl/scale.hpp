// Many runs of mamba-rl: horizons, seeds and controllers.
#pragma once

#include "flags.hpp"

// The exit code.
int scale(const Flags& flags);
