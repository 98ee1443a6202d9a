#include "rl/rollout/rollout.hpp"

#include <mamba/graph.hpp>
#include <mamba/ops.hpp>

#include "rl/cuda.hpp"

namespace mamba_rl {

using mamba::DType;
using mamba::Tensor;

void Rollout::prepare(const Agent& agent, std::int64_t rows, std::int64_t count,
                      std::int64_t each) {
  if (batch() == rows && chunks() == count && length() == each) return;
  const mamba::Device device = agent.device();
  const std::int64_t steps = count * each;
  const mamba::Shape shape{rows, steps};
  initial.clear();
  for (std::int64_t k = 0; k < count; ++k) initial.push_back(agent.make_state(rows));
  observations = Tensor({rows, steps, agent.config().observation}, DType::f32, device);
  for (Tensor* tensor : {&begins, &decisions, &actions, &ends}) {
    *tensor = Tensor(shape, DType::i32, device);
  }
  for (Tensor* tensor : {&log_probs, &values, &rewards, &advantages, &returns}) {
    *tensor = Tensor(shape, DType::f32, device);
  }
  last_values = Tensor::zeros({rows}, DType::f32, device);
}

StepViews Rollout::at(std::int64_t t) {
  const auto column = [t](Tensor& tensor) { return tensor.view().columns(t, 1); };
  return {observations.view().steps(t, 1),
          column(begins),
          column(decisions),
          column(actions),
          column(log_probs),
          column(rewards),
          column(ends)};
}

double bytes_of_rollout(const AgentConfig& config, std::int64_t batch, std::int64_t time) {
  constexpr double scalars = 9;  // the [batch, time] tensors of a Rollout
  const double observation = static_cast<double>(config.observation);
  return static_cast<double>(batch) * static_cast<double>(time) * (observation + scalars) * 4;
}

double bytes_of_training(const AgentConfig& config, std::int64_t rows, std::int64_t time) {
  // Per step and row in units of the width: Mamba's tape (about 11, see LayerTape) and what
  // backward takes beside it (about 12); a GRU's slopes (7 with what was there before the steps)
  // and gradients of gates (4).
  const std::int64_t widths = config.controller.kind != "gru" ? 24 * config.controller.layers : 16;
  const auto numbers = static_cast<double>(widths * config.controller.width + config.observation);
  return static_cast<double>(rows) * static_cast<double>(time) * numbers * 4;
}

double bytes_of_decisions(const AgentConfig& config, double decisions) {
  // Logits and value with their gradients; what was remembered, with its own.
  const std::int64_t numbers = 2 * (config.actions + 1) + 2 * config.controller.width;
  return decisions * static_cast<double>(numbers) * 4;
}

double bytes_of_agent(const AgentConfig& config) {
  const auto width = static_cast<double>(config.controller.width);
  const auto layers = static_cast<double>(config.controller.layers);
  // Mamba's in_proj, out_proj and about an eighth for the selection; a GRU's two sets of gates.
  const double core = config.controller.kind != "gru" ? 6.25 * width * layers : 6 * width;
  const auto others = static_cast<double>(config.observation + config.actions + 1);
  return 4 * 4 * width * (core + others);  // weights, gradients and two moments in f32
}

double bytes_of_states(const AgentConfig& config, std::int64_t batch) {
  const std::int64_t numbers = config.controller.kind != "gru"
                                   ? config.controller.layers * 2 * (16 + 3)  // ssm and conv
                                   : 1;
  return static_cast<double>(batch) * static_cast<double>(numbers * config.controller.width) * 4;
}

double decisions_of(const EnvironmentConfig& config, std::int64_t time) {
  const std::int64_t every = config.task == Task::delayed_cue ? episode_steps(config) : 1;
  const std::int64_t decisions = time / every + 1;
  return static_cast<double>(decisions);
}

namespace {

// One row of what an agent thinks at a step.
struct Thoughts {
  mamba::TensorView hidden;  // [batch, 1, width]
  mamba::TensorView out;     // [batch, actions + 1]

  Thoughts(const Agent& agent, std::int64_t batch, mamba::Scratch& scratch)
      : hidden(scratch.take({batch, 1, agent.width()}, DType::f32)),
        out(scratch.take({batch, agent.config().actions + 1}, DType::f32)) {}
  mamba::TensorView logits() const { return out.columns(0, out.dim(1) - 1); }
  mamba::TensorView value() const { return out.columns(out.dim(1) - 1, 1); }
};

void think(const Agent& agent, const StepViews& step, mamba::StackState& state,
           const Thoughts& thoughts, mamba::Stream& stream) {
  agent.remember(step.observations, state, step.begins, thoughts.hidden, nullptr, stream);
  agent.decide(thoughts.hidden.reshape({state.batch(), agent.width()}), thoughts.out, stream);
}

void take_steps(const Agent& agent, Environments& environments, mamba::StackState& state,
                Rollout& rollout, std::int64_t first, bool greedy, mamba::Stream& stream) {
  mamba::Scratch scratch(stream);
  const Thoughts thoughts(agent, rollout.batch(), scratch);
  for (std::int64_t t = first; t < first + rollout.length(); ++t) {
    const StepViews step = rollout.at(t);
    environments.observe(step, stream);
    think(agent, step, state, thoughts, stream);
    mamba::copy(thoughts.value(), rollout.values.view().columns(t, 1), stream);
    environments.act(thoughts.logits(), greedy, step, stream);
  }
}

// The same on CUDA without the host in the loop: one step is recorded on buffers that stay where
// they are, from which a kernel carries it to its place in the rollout.
void replay_steps(const Agent& agent, Environments& environments, mamba::StackState& state,
                  Rollout& rollout, std::int64_t first, bool greedy, mamba::Stream& stream) {
  const std::int64_t batch = rollout.batch();
  mamba::Scratch scratch(stream);
  const Thoughts thoughts(agent, batch, scratch);
  const auto column = [&](DType dtype) { return scratch.take({batch, 1}, dtype); };
  StepViews step;
  step.observations = scratch.take({batch, 1, agent.config().observation}, DType::f32);
  step.begins = column(DType::i32);
  step.decisions = column(DType::i32);
  step.actions = column(DType::i32);
  step.log_probs = column(DType::f32);
  step.rewards = column(DType::f32);
  step.ends = column(DType::i32);
  const mamba::TensorView taken = scratch.take({1}, DType::i32);
  mamba::zero(taken, stream);
  const auto take = [&](mamba::Stream& on) {
    environments.observe(step, on);
    think(agent, step, state, thoughts, on);
    environments.act(thoughts.logits(), greedy, step, on);
    cuda::keep_step(step, thoughts.value(), rollout.at(first),
                    rollout.values.view().columns(first, 1), taken, on);
  };
  take(stream);  // what it needs is allocated here, and not while it is recorded
  const mamba::Graph graph = mamba::Graph::record(stream, take);
  for (std::int64_t t = 1; t < rollout.length(); ++t) graph.replay();
  stream.synchronize();  // the graph ends here
}

// What the agent thinks of the step that comes next, which is not taken.
void look_ahead(const Agent& agent, const Environments& environments,
                const mamba::StackState& state, Rollout& rollout, mamba::Stream& stream) {
  const std::int64_t batch = rollout.batch();
  mamba::Scratch scratch(stream);
  const Thoughts thoughts(agent, batch, scratch);
  StepViews next;
  next.observations = scratch.take({batch, 1, agent.config().observation}, DType::f32);
  next.begins = scratch.take({batch, 1}, DType::i32);
  next.decisions = scratch.take({batch, 1}, DType::i32);
  environments.observe(next, stream);
  mamba::StackState ahead = state.clone(stream);
  think(agent, next, ahead, thoughts, stream);
  mamba::copy(thoughts.value(), rollout.last_values.view().reshape({batch, 1}), stream);
}

// chunk(first step) for every one.
template <class Chunk>
void each_chunk(Rollout& rollout, const mamba::StackState& state, mamba::Stream& stream,
                const Chunk& chunk) {
  std::int64_t first = 0;
  for (mamba::StackState& initial : rollout.initial) {
    initial.copy_from(state, stream);
    chunk(first);
    first += rollout.length();
  }
}

}  // namespace

void collect(const Agent& agent, Environments& environments, mamba::StackState& state,
             Rollout& rollout, bool greedy, bool bootstrap, mamba::Stream& stream) {
  if (!stream.device().is_cuda() || !cuda::can_collect(agent.config())) {
    return collect_by_steps(agent, environments, state, rollout, greedy, bootstrap, stream);
  }
  each_chunk(rollout, state, stream, [&](std::int64_t first) {
    cuda::collect(agent, environments, state, rollout.at(first),
                  rollout.values.view().columns(first, 1), rollout.length(), greedy, stream);
  });
  if (bootstrap) look_ahead(agent, environments, state, rollout, stream);
}

void collect_by_steps(const Agent& agent, Environments& environments, mamba::StackState& state,
                      Rollout& rollout, bool greedy, bool bootstrap, mamba::Stream& stream) {
  each_chunk(rollout, state, stream, [&](std::int64_t first) {
    const auto take = stream.device().is_cuda() ? replay_steps : take_steps;
    take(agent, environments, state, rollout, first, greedy, stream);
  });
  if (bootstrap) look_ahead(agent, environments, state, rollout, stream);
}

Score score(const Tensor& decisions, const Tensor& rewards) {
  Score score;
  const auto* decision = decisions.data<std::int32_t>();
  const float* reward = rewards.data<float>();
  for (std::int64_t i = 0; i < decisions.count(); ++i) {
    score.queries += decision[i] == query ? 1 : 0;
    score.right += decision[i] == query && reward[i] > 0.5f ? 1 : 0;
  }
  return score;
}

}  // namespace mamba_rl
