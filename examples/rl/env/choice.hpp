// An action from a policy's logits, the same on the host and in CUDA kernels (see random.hpp).
#pragma once

#include <cmath>
#include <cstdint>

namespace mamba_rl {

struct Choice {
  std::int32_t action;
  float log_prob;
};

// p = softmax(logits). Greedy: the largest, the lowest of equals. Else the first action whose
// cumulative probability exceeds `uniform`, a number in (0, 1).
constexpr Choice choose(const float* logits, std::int32_t count, float uniform, bool greedy) {
  std::int32_t best = 0;
  for (std::int32_t a = 1; a < count; ++a) {
    if (logits[a] > logits[best]) best = a;
  }
  const float most = logits[best];
  float sum = 0;
  for (std::int32_t a = 0; a < count; ++a) sum += std::exp(logits[a] - most);
  std::int32_t action = best;
  if (!greedy) {
    const float wanted = uniform * sum;
    float below = 0;
    for (action = 0; action < count - 1; ++action) {
      below += std::exp(logits[action] - most);
      if (below > wanted) break;
    }
  }
  return {action, logits[action] - most - std::log(sum)};
}

}  // namespace mamba_rl
