// How the next token is chosen.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

// See the operation Sample for the mathematics and the order in which these apply.
struct SamplingOptions {
  float temperature = 0;         // 0: greedy
  std::int64_t top_k = 0;        // 0: all
  float top_p = 1;               // 1: all
  float min_p = 0;               // 0: all
  float repetition_penalty = 1;  // 1: none; over prompt and output
  std::uint64_t seed = 0;
  // Added to the logits of these tokens before all of the above; finite.
  std::map<std::int32_t, float> logit_bias;
  // No other token is chosen, not even one that ends the text. Empty: all may be.
  std::vector<std::int32_t> allowed;
  // Where a member of a pool has a bias or a list, the pool keeps two more tensors of the size of
  // its logits, and a step adds one of them to the logits of all rows.

  // Values out of range, and limits on a greedy choice (temperature 0 with top_k, top_p or min_p),
  // are ArgumentErrors naming the option. So are ids beyond the vocabulary, to a Generator.
  void check() const;

  friend bool operator==(const SamplingOptions& a, const SamplingOptions& b) {
    return a.temperature == b.temperature && a.top_k == b.top_k && a.top_p == b.top_p &&
           a.min_p == b.min_p && a.repetition_penalty == b.repetition_penalty && a.seed == b.seed &&
           a.logit_bias == b.logit_bias && a.allowed == b.allowed;
  }
};

}  // namespace mamba
