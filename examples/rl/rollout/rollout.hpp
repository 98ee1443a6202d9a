// What an agent lived through: some time in many environments, in chunks, and the state that each
// chunk began with.
#pragma once

#include <mamba/state.hpp>
#include <mamba/tensor.hpp>

#include <vector>

#include "rl/agent/agent.hpp"
#include "rl/env/environments.hpp"

namespace mamba_rl {

struct Rollout {
  std::vector<mamba::StackState> initial;  // before the first step of every chunk
  mamba::Tensor observations;              // [batch, time, observation] f32
  mamba::Tensor begins;                    // [batch, time] i32
  mamba::Tensor decisions;                 // [batch, time] i32
  mamba::Tensor actions;                   // [batch, time] i32
  mamba::Tensor log_probs;                 // [batch, time] f32
  mamba::Tensor values;                    // [batch, time] f32
  mamba::Tensor rewards;                   // [batch, time] f32
  mamba::Tensor ends;                      // [batch, time] i32
  mamba::Tensor last_values;               // [batch] f32: of the step after the last
  mamba::Tensor advantages;                // [batch, time] f32: the trainer's
  mamba::Tensor returns;                   // [batch, time] f32: the trainer's

  // Memory for chunks of so many steps; keeps what it has if the shape is already right.
  void prepare(const Agent& agent, std::int64_t batch, std::int64_t chunks, std::int64_t length);
  std::int64_t batch() const { return begins ? begins.dim(0) : 0; }
  std::int64_t time() const { return begins ? begins.dim(1) : 0; }  // of all chunks
  std::int64_t chunks() const { return static_cast<std::int64_t>(initial.size()); }
  std::int64_t length() const { return chunks() > 0 ? time() / chunks() : 0; }  // of one
  StepViews at(std::int64_t t);
};

// What to refuse beforehand. Bytes, about: of a rollout; of what training holds for so many rows of
// it, and for the steps that decide; of weights, their gradients and moments; of agents' states.
double bytes_of_rollout(const AgentConfig& config, std::int64_t batch, std::int64_t time);
double bytes_of_training(const AgentConfig& config, std::int64_t rows, std::int64_t time);
double bytes_of_decisions(const AgentConfig& config, double decisions);
double bytes_of_agent(const AgentConfig& config);
double bytes_of_states(const AgentConfig& config, std::int64_t batch);
// Steps among `time` of one environment that decide, at most.
double decisions_of(const EnvironmentConfig& config, std::int64_t time);

// Steps all environments through `rollout` (prepared), acting as the agent says and forgetting
// where an episode begins. `state` goes on. With `bootstrap` last_values are what the agent thinks
// of the step that comes next, which is not taken.
void collect(const Agent& agent, Environments& environments, mamba::StackState& state,
             Rollout& rollout, bool greedy, bool bootstrap, mamba::Stream& stream);

// The same by the library's operations, one step after the other: what collect() does on the CPU,
// and, as a graph, on CUDA for agents that no kernel can step (see cuda.hpp).
void collect_by_steps(const Agent& agent, Environments& environments, mamba::StackState& state,
                      Rollout& rollout, bool greedy, bool bootstrap, mamba::Stream& stream);

// Of the queries in a rollout, how many there were and how many were answered with the right
// action.
struct Score {
  std::int64_t queries = 0;
  std::int64_t right = 0;

  double success() const {
    return queries > 0 ? static_cast<double>(right) / static_cast<double>(queries) : 0;
  }
};
Score score(const mamba::Tensor& decisions, const mamba::Tensor& rewards);  // both on the CPU

}  // namespace mamba_rl
