// What an agent lived through: a chunk of time in many environments, and the state it began with.
#pragma once

#include <mamba/state.hpp>
#include <mamba/tensor.hpp>

#include "agent.hpp"
#include "environments.hpp"

namespace mamba_rl {

struct Chunk {
  mamba::StackState initial;     // before the first step
  mamba::Tensor observations;    // [batch, time, observation] f32
  mamba::Tensor begins;          // [batch, time] i32
  mamba::Tensor decisions;       // [batch, time] i32
  mamba::Tensor actions;         // [batch, time] i32
  mamba::Tensor log_probs;       // [batch, time] f32
  mamba::Tensor values;          // [batch, time] f32
  mamba::Tensor rewards;         // [batch, time] f32
  mamba::Tensor ends;            // [batch, time] i32
  mamba::Tensor last_values;     // [batch] f32: of the step after the last
  mamba::Tensor advantages;      // [batch, time] f32: the trainer's
  mamba::Tensor returns;         // [batch, time] f32: the trainer's

  // Memory for a chunk; keeps what it has if the shape is already right.
  void prepare(const Agent& agent, std::int64_t batch, std::int64_t time);
  std::int64_t batch() const { return begins ? begins.dim(0) : 0; }
  std::int64_t time() const { return begins ? begins.dim(1) : 0; }
  StepViews at(std::int64_t t);
};

// Bytes of a chunk, and of what training holds for so many rows of it: what to refuse beforehand.
std::int64_t bytes_of_chunk(const AgentConfig& config, std::int64_t batch, std::int64_t time);
std::int64_t bytes_of_training(const AgentConfig& config, std::int64_t rows, std::int64_t time);

// Steps all environments through `chunk` (prepared), acting as the agent says and forgetting where
// an episode begins. `state` goes on. With `bootstrap` last_values are what the agent thinks of the
// step that comes next, which is not taken.
void collect(const Agent& agent, Environments& environments, mamba::StackState& state, Chunk& chunk,
             bool greedy, bool bootstrap, mamba::Stream& stream);

// Of the queries in a chunk, how many there were and how many were answered with the right action.
struct Score {
  std::int64_t queries = 0;
  std::int64_t right = 0;

  double success() const {
    return queries > 0 ? static_cast<double>(right) / static_cast<double>(queries) : 0;
  }
};
Score score(const mamba::Tensor& decisions, const mamba::Tensor& rewards);  // both on the CPU

}  // namespace mamba_rl
