// What sizes a model may have, whether they come from a caller or from a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <mamba/config.hpp>

namespace mamba {

namespace limits {
constexpr std::int64_t size = 2147483647;  // token ids and row maps are i32
constexpr std::int64_t d_state = 256;      // a kernel keeps a row of h in registers
constexpr std::int64_t n_layer = 65536;    // a list of layers is made before any is read
constexpr std::int64_t elements = std::int64_t{1} << 53;  // of one tensor: exact as a double
constexpr float smallest = 1e-30f;                        // of epsilons and time steps
constexpr float largest = 1e9f;
}  // namespace limits

// Throws the error that fits the source of the config.
using Complain = std::function<void(const std::string& field, const std::string& expected,
                                    const std::string& got)>;

// Fills in the zeros, and complains of the first field that cannot be.
LayerConfig resolve(LayerConfig config, const Complain& complain);
ModelConfig resolve(ModelConfig config, const Complain& complain);

}  // namespace mamba
