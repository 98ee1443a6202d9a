// What one environment writes into the trainer's buffers at a step, in kernels that step many.
#pragma once

#include "rl/cuda.cuh"
#include "rl/env/choice.hpp"
#include "rl/env/environments.hpp"

namespace mamba_rl::cuda {

// StepViews inside kernels; `t` counts steps from the one of the views.
struct StepRows {
  Rows<float> observations;
  Rows<std::int32_t> begins, decisions, actions;
  Rows<float> log_probs, rewards;
  Rows<std::int32_t> ends;

  explicit StepRows(const StepViews& step)
      : observations(step.observations),
        begins(step.begins),
        decisions(step.decisions),
        actions(step.actions),
        log_probs(step.log_probs),
        rewards(step.rewards),
        ends(step.ends) {}

  // What is seen is written by the caller.
  __device__ void begin(const EnvironmentConfig& config, const EnvironmentState& state,
                        std::int64_t b, std::int64_t t = 0) const {
    *begins.at(b, t) = state.step == 0 ? 1 : 0;
    *decisions.at(b, t) = decision(config, state);
  }

  __device__ void act(const EnvironmentConfig& config, std::int32_t environment,
                      EnvironmentState& state, const float* logits, bool greedy, std::int64_t b,
                      std::int64_t t = 0) const {
    const Choice choice =
        choose(logits, action_count(config), action_uniform(config, environment, state), greedy);
    const Outcome outcome = mamba_rl::act(config, environment, state, choice.action);
    *actions.at(b, t) = choice.action;
    *log_probs.at(b, t) = choice.log_prob;
    *rewards.at(b, t) = outcome.reward;
    *ends.at(b, t) = outcome.ends ? 1 : 0;
  }
};

}  // namespace mamba_rl::cuda
