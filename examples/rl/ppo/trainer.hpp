// PPO with a recurrent state: rolls out chunks, keeps the state each began with, and trains on
// minibatches of environments whose time is whole.
#pragma once

#include <mamba/checkpoint.hpp>
#include <mamba/optimizer.hpp>

#include <memory>
#include <string>
#include <vector>

#include "rl/agent/agent.hpp"
#include "rl/env/environments.hpp"
#include "rl/rollout/rollout.hpp"

namespace mamba_rl {

struct PpoOptions {
  std::int64_t epochs = 4;
  std::int64_t minibatches = 4;
  float gamma = 0.99f;
  float lambda = 0.95f;
  float clip = 0.2f;
  float value_weight = 0.5f;
  float entropy_weight = 0.05f;
  float rate = 1e-3f;
  float max_norm = 1;
  // Of NormaliseAdvantages. Where nearly every answer is right, the deviation is that of the
  // value's own errors, and dividing by it alone makes large steps of them: mamba at horizon 1000
  // was done after 150 updates with 1e-8 and after 100 with this (128 environments, two seeds).
  float epsilon = 0.1f;
  // Once the horizon is mastered, as the curriculum judges, the rate falls: to a half in this many
  // updates, a third in twice as many; 0: never. With the few queries of an update, steps of a
  // constant size wander about the solution: a GRU at horizon 100 with 64 environments stayed at
  // 100 % from update 225 on, and from 125 with this. The entropy weight must not fall with it: a
  // cue that is answered wrongly for sure is never tried again.
  float cooling = 20;
};

struct TrainerOptions {
  EnvironmentConfig environment;  // its delay is the horizon that is to be mastered
  ControllerConfig controller;
  PpoOptions ppo;
  std::int64_t num_envs = 64;
  std::int64_t chunk_len = 0;  // 0: one episode of the horizon (at most)
  std::int64_t chunks = 1;     // rolled out before every training,
  bool across_chunks = false;  // with gradients that go through all of them
  // The delay begins at `first_delay` and doubles when the last `window` updates with queries
  // average over `good` success. Else it is the horizon from the start.
  bool curriculum = true;
  std::int32_t first_delay = 4;
  std::int64_t window = 4;
  double good = 0.85;
  mamba::Device device;
  int threads = 0;
};

struct UpdateResult {
  std::int64_t update = 0;
  std::int64_t env_steps = 0;  // all so far
  std::int32_t delay = 0;
  Score score;
  double policy_loss = 0, value_loss = 0, entropy = 0, divergence = 0, clipped = 0;
  double gradient_norm = 0;
  double rollout_seconds = 0, training_seconds = 0;
};

class Trainer {
 public:
  // Impossible options are an ArgumentError, chunks that cannot fit in the device's memory an error
  // with the bytes that they would take.
  explicit Trainer(const TrainerOptions& options);

  UpdateResult update();
  std::int64_t updates() const { return progress_.updates; }
  std::int64_t env_steps() const { return progress_.env_steps; }
  std::int32_t delay() const { return environments_.config().delay; }
  float rate() const;  // of the next update: what cooling has left of it
  const TrainerOptions& options() const { return options_; }
  const Agent& agent() const { return agent_; }
  mamba::Stream& stream() { return stream_; }

  // One episode in each of `episodes` environments of their own, the same ones in every call, at a
  // delay. What cannot fit in memory is an error with its bytes.
  Score evaluate(std::int32_t delay, bool greedy, std::int64_t episodes = 1024);

  // Whole: weights, optimiser, states of environments and agent, where the curriculum is.
  void save(const std::string& path, const std::map<std::string, std::string>& notes = {});
  // A checkpoint of another configuration is refused. Gives back the notes of save().
  std::map<std::string, std::string> load(const std::string& path);

 private:
  struct Progress {
    std::int64_t updates = 0;
    std::int64_t env_steps = 0;
    std::int64_t mastered = 0;      // updates since the last ones at the horizon were good
    std::vector<double> successes;  // of the last updates at this delay
  };
  // What a minibatch of environments is trained on.
  struct Minibatch;

  std::map<std::string, std::string> configuration() const;
  void roll_out(UpdateResult& result);
  mamba::TensorView upload(const std::vector<std::int32_t>& list, mamba::Scratch& scratch);
  void learn(const std::vector<std::int32_t>& rows, mamba::TensorView sums);
  void remember(const Minibatch& batch);
  void decide(const Minibatch& batch, mamba::TensorView sums);
  void remember_backward(const Minibatch& batch);
  std::vector<std::int32_t> shuffled(std::int64_t epoch) const;
  void advance_curriculum(const Score& score);

  TrainerOptions options_;
  mamba::Stream stream_;
  Environments environments_;
  Agent agent_;
  mamba::AdamW optimizer_;
  mamba::StackState state_;
  Progress progress_;
  Rollout rollout_;
  std::vector<AgentTape> tapes_;                    // one for each chunk
  std::vector<std::vector<std::int32_t>> decided_;  // of every row: the steps that decide
  std::vector<mamba::Tensor> uploads_;              // index lists that a queued copy may still read
};

}  // namespace mamba_rl
