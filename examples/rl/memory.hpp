// How much a device can hold.
#pragma once

#include <cstdint>

#include <mamba/device.hpp>

namespace mamba_rl {

// Bytes: of the machine's memory, or what is free on a CUDA device.
std::int64_t memory_of(mamba::Device device);

}  // namespace mamba_rl
