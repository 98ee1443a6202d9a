// What sizes a model may have, whether they come from a caller or from a file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include <mamba/config.hpp>

namespace mamba {

// Throws the error that fits the source of the config.
using Complain = std::function<void(const std::string& field, const std::string& expected,
                                    const std::string& got)>;

namespace limits {
constexpr std::int64_t size = 2147483647;  // token ids and row maps are i32
constexpr std::int64_t d_state = 256;      // a kernel keeps a row of h in registers
constexpr std::int64_t n_layer = 65536;    // a list of layers is made before any is read
constexpr std::int64_t elements = std::int64_t{1} << 53;  // of one tensor: exact as a double
constexpr float smallest = 1e-30f;                        // of epsilons and time steps
constexpr float largest = 1e9f;

// Complain of a value that is not what it must be.
void range(const Complain& complain, const char* field, std::int64_t value, std::int64_t low,
           std::int64_t high);
void product(const Complain& complain, const char* fields, std::int64_t a, std::int64_t b);
void between(const Complain& complain, const char* field, float value, float low,
             const char* expected);
void positive(const Complain& complain, const char* field, float value);
}  // namespace limits

// Fills in the zeros, and complains of the first field that cannot be.
LayerConfig resolve(LayerConfig config, const Complain& complain);
LanguageModelConfig resolve(LanguageModelConfig config, const Complain& complain);

}  // namespace mamba
