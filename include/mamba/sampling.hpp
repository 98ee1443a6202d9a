// How the next token is chosen.
#pragma once

#include <cstdint>

namespace mamba {

// See the operation Sample for the mathematics and the order in which these apply.
struct SamplingOptions {
  float temperature = 0;         // 0: greedy
  std::int64_t top_k = 0;        // 0: all
  float top_p = 1;               // 1: all
  float min_p = 0;               // 0: all
  float repetition_penalty = 1;  // 1: none; over prompt and output
  std::uint64_t seed = 0;

  // Values out of range, and limits on a greedy choice (temperature 0 with top_k, top_p or min_p),
  // are ArgumentErrors naming the option.
  void check() const;

  friend bool operator==(const SamplingOptions& a, const SamplingOptions& b) {
    return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p &&
           a.min_p == b.min_p && a.repetition_penalty == b.repetition_penalty && a.seed == b.seed;
  }
};

}  // namespace mamba
