// What the tests of mamba_rl train.
#pragma once

#include <string>
#include <vector>

#include "rl/ppo/trainer.hpp"
#include "testing.hpp"

namespace mamba_rl {

constexpr const char* controllers[] = {"mamba", "mamba2", "gru"};

inline TrainerOptions options_of(const std::string& controller, std::int32_t delay) {
  TrainerOptions options;
  options.environment.delay = delay;
  options.environment.seed = options.controller.seed = 2;
  options.controller.kind = controller;
  return options;
}

inline TrainerOptions small(const std::string& controller, std::int32_t delay) {
  TrainerOptions options = options_of(controller, delay);
  options.controller.width = 16;
  options.num_envs = 8;
  options.threads = 1;
  return options;
}

// Fresh weights, of which many are zeros and ones, changed so that each matters.
inline void disturb(Agent& agent) {
  mamba::testing::Random random(7);
  for (const mamba::Parameter& parameter : agent.parameters()) {
    std::vector<float> changed;
    for (const double value : mamba::testing::values(parameter.weight)) {
      changed.push_back(static_cast<float>(value + random.normal(0.1)));
    }
    const mamba::Tensor there =
        mamba::Tensor::from(changed, parameter.weight.shape()).to(agent.device());
    mamba::Stream stream(agent.device());
    mamba::copy(there, parameter.weight, stream);
    stream.synchronize();
  }
}

}  // namespace mamba_rl
