// The formulas of ppo.hpp for one step, the same on the host and in CUDA kernels (see random.hpp).
#pragma once

#include <cmath>

namespace mamba_rl {

// advantage[t] from what came after it.
constexpr float advantage(float reward, float value, bool ended, float next_value,
                          float next_advantage, float gamma, float lambda) {
  const float after = ended ? 0.0f : gamma * (next_value + lambda * next_advantage);
  return reward - value + after;
}

struct PpoTerm {
  float policy, value, divergence, clipped;
  float dlog_prob, dvalue;  // of policy and of value_weight times value
};

constexpr PpoTerm ppo_term(float log_prob, float old_log_prob, float advantage, float value,
                           float target, float clip, float value_weight) {
  const float change = log_prob - old_log_prob;
  const float ratio = std::exp(change);
  const float nearest = ratio < 1 - clip ? 1 - clip : ratio > 1 + clip ? 1 + clip : ratio;
  const float plain = ratio * advantage;
  const float cut = nearest * advantage;
  const bool clipped = cut < plain;  // then the loss does not depend on the policy
  const float error = value - target;
  return {clipped ? -cut : -plain, error * error / 2,       ratio - 1 - change,
          clipped ? 1.0f : 0.0f,   clipped ? 0.0f : -plain, value_weight * error};
}

}  // namespace mamba_rl
