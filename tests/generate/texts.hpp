// What tests of generation write with.
#pragma once

#include <cstdint>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>

#include "testing.hpp"

namespace mamba::testing {

using Ids = std::vector<std::int32_t>;

inline const Ids prompt{84, 104, 101, 32, 115, 116, 97, 116, 101};  // "The state"

// Draws among several tokens, by every limit that there is.
inline SamplingOptions lively(std::uint64_t seed) {
  SamplingOptions options;
  options.temperature = 1.2f;
  options.top_k = 40;
  options.top_p = 0.95f;
  options.min_p = 0.01f;
  options.repetition_penalty = 1.1f;
  options.seed = seed;
  return options;
}

// The golden model of bytes.
inline LanguageModel bytes_model(Device device, DType dtype = DType::f32) {
  return LanguageModel::load(golden_folder("bytes"), dtype, device);
}

}  // namespace mamba::testing
