// One environment as functions of a small state, the same on the host and in CUDA kernels (see
// random.hpp). Everything random is drawn from Philox keyed by the seed at a counter of
// (environment, episode, step), so an episode does not depend on what else runs.
//
// All tasks show [num_bits + 3]: a cue's bits as -1 and +1 or zeros, is_start, is_query, noise; and
// all answer with one of their actions at every step.
//
//   delayed_cue  the cue at step 0, then `delay` steps of noise, then the query, whose action must
//                be the cue; the episode ends there. 2^num_bits actions.
//   bandit       cue and query at once: nothing to remember. 2^num_bits actions.
//   repeat_last  a new cue every step; the action must be the cue of the step before. 1 + delay
//                steps, all but the first a query. 2^num_bits actions.
//   t_maze       Bakker 2002: a cue of one bit at the start of a corridor of `delay` cells, whose
//                end is the query. Actions: 0 walks on, 1 and 2 turn left and right, which ends the
//                episode at the end of the corridor and anywhere else costs 0.1 and a step. Cut off
//                without reward after 4 (delay + 2) steps.
// A right answer is rewarded with 1.
#pragma once

#include <cstdint>

#include "rl/random.hpp"

namespace mamba_rl {

enum class Task : std::int32_t { delayed_cue, bandit, repeat_last, t_maze };

// As the flags and the metrics of mamba-rl call it.
constexpr const char* name_of(Task task) {
  switch (task) {
    case Task::delayed_cue:
      return "cue";
    case Task::bandit:
      return "bandit";
    case Task::repeat_last:
      return "repeat";
    case Task::t_maze:
      return "t-maze";
  }
  return "";
}

struct EnvironmentConfig {
  Task task = Task::delayed_cue;
  std::int32_t num_bits = 4;  // 1 to 16
  std::int32_t delay = 20;    // at least 1
  float noise = 0.1f;         // its standard deviation
  std::uint64_t seed = 0;
};

// Where one environment is. Written to checkpoints as it is.
struct EnvironmentState {
  std::int32_t episode = 0;
  std::int32_t step = 0;
  std::int32_t place = 0;  // t_maze: cells walked
};

// What a step means to the trainer.
enum Decision : std::int32_t {
  irrelevant = 0,  // the action changes nothing
  deciding = 1,    // it does: policy and value are trained here
  query = 2,       // deciding, and counted in the success
};

struct Outcome {
  float reward;
  bool ends;  // the next observation is the first of another episode
};

constexpr std::int32_t observation_size(const EnvironmentConfig& config) {
  return config.num_bits + 3;
}

constexpr std::int32_t action_count(const EnvironmentConfig& config) {
  return config.task == Task::t_maze ? 3 : std::int32_t{1} << config.num_bits;
}

// Steps of an episode; the most there can be in t_maze.
constexpr std::int64_t episode_steps(const EnvironmentConfig& config) {
  const std::int64_t delay = config.delay;
  switch (config.task) {
    case Task::delayed_cue:
      return delay + 2;
    case Task::bandit:
      return 1;
    case Task::repeat_last:
      return delay + 1;
    case Task::t_maze:
      return 4 * (delay + 2);
  }
  return 0;
}

namespace detail {

// What a counter's last word says the numbers are for.
enum Purpose : std::uint32_t { for_cue = 0, for_noise = 1, for_action = 2 };

constexpr RandomWords draw(const EnvironmentConfig& config, std::int32_t environment,
                           const EnvironmentState& state, std::int32_t step, Purpose purpose) {
  return philox(config.seed,
                {static_cast<std::uint32_t>(environment), static_cast<std::uint32_t>(state.episode),
                 static_cast<std::uint32_t>(step), purpose});
}

}  // namespace detail

// The pattern shown at a step of this episode (of those that show one).
constexpr std::int32_t cue_at(const EnvironmentConfig& config, std::int32_t environment,
                              const EnvironmentState& state, std::int32_t step) {
  const std::int32_t bits = config.task == Task::t_maze ? 1 : config.num_bits;
  const RandomWords words = detail::draw(config, environment, state, step, detail::for_cue);
  return static_cast<std::int32_t>(words.a >> (32 - bits));
}

// A number in (0, 1) for the choice of an action at this step.
constexpr float action_uniform(const EnvironmentConfig& config, std::int32_t environment,
                               const EnvironmentState& state) {
  return open_uniform(detail::draw(config, environment, state, state.step, detail::for_action).a);
}

constexpr Decision decision(const EnvironmentConfig& config, const EnvironmentState& state) {
  switch (config.task) {
    case Task::delayed_cue:
      return state.step == config.delay + 1 ? query : irrelevant;
    case Task::bandit:
      return query;
    case Task::repeat_last:
      return state.step > 0 ? query : irrelevant;
    case Task::t_maze:
      return state.place == config.delay ? query : deciding;
  }
  return irrelevant;
}

// Writes observation_size(config) numbers.
constexpr void observe(const EnvironmentConfig& config, std::int32_t environment,
                       const EnvironmentState& state, float* observation) {
  const bool shows = state.step == 0 || config.task == Task::repeat_last;
  const std::int32_t cue = shows ? cue_at(config, environment, state, state.step) : 0;
  const std::int32_t shown = !shows ? 0 : config.task == Task::t_maze ? 1 : config.num_bits;
  for (std::int32_t bit = 0; bit < config.num_bits; ++bit) {
    const float value = (cue >> bit & 1) != 0 ? 1.0f : -1.0f;
    observation[bit] = bit < shown ? value : 0.0f;
  }
  observation[config.num_bits] = state.step == 0 ? 1.0f : 0.0f;
  observation[config.num_bits + 1] = decision(config, state) == query ? 1.0f : 0.0f;
  const RandomWords words = detail::draw(config, environment, state, state.step, detail::for_noise);
  observation[config.num_bits + 2] = config.noise * normal(words.a, words.b);
}

// Takes the action at this step and goes on to the next, or to the next episode.
constexpr Outcome act(const EnvironmentConfig& config, std::int32_t environment,
                      EnvironmentState& state, std::int32_t action) {
  const std::int32_t step = state.step;
  const Decision kind = decision(config, state);
  Outcome outcome{0, false};
  switch (config.task) {
    case Task::delayed_cue:
    case Task::bandit:
      if (kind == query) {
        outcome = {action == cue_at(config, environment, state, 0) ? 1.0f : 0.0f, true};
      }
      break;
    case Task::repeat_last:
      if (kind == query) {
        outcome.reward = action == cue_at(config, environment, state, step - 1) ? 1.0f : 0.0f;
      }
      outcome.ends = step == config.delay;
      break;
    case Task::t_maze:
      if (kind == query && action != 0) {
        const bool right = action == 1 + cue_at(config, environment, state, 0);
        outcome = {right ? 1.0f : 0.0f, true};
      } else {
        const bool walks = kind == deciding && action == 0;
        outcome = {walks ? 0.0f : -0.1f, step + 1 == 4 * (config.delay + 2)};
        state.place += walks ? 1 : 0;
      }
      break;
  }
  ++state.step;
  if (outcome.ends) state = {state.episode + 1, 0, 0};
  return outcome;
}

}  // namespace mamba_rl
