#include "rollout.hpp"

#include <mamba/ops.hpp>

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

std::int64_t bytes_of_rollout(const AgentConfig& config, std::int64_t batch, std::int64_t time) {
  constexpr std::int64_t scalars = 9;  // the [batch, time] tensors of a Rollout
  return batch * time * (config.observation + scalars) * 4;
}

std::int64_t bytes_of_training(const AgentConfig& config, std::int64_t rows, std::int64_t time) {
  // Per step and row in units of the width: Mamba's tape (about 11, see LayerTape) and what
  // backward takes beside it (about 12); a GRU's inputs and gates, kept and as gradients.
  const std::int64_t widths =
      config.controller.kind == "mamba" ? 24 * config.controller.layers : 16;
  return rows * time * (widths * config.controller.width + config.observation) * 4;
}

void collect(const Agent& agent, Environments& environments, mamba::StackState& state,
             Rollout& rollout, bool greedy, bool bootstrap, mamba::Stream& stream) {
  const std::int64_t batch = rollout.batch(), actions = agent.config().actions;
  mamba::Scratch scratch(stream);
  const mamba::TensorView hidden = scratch.take({batch, 1, agent.width()}, DType::f32);
  const mamba::TensorView out = scratch.take({batch, actions + 1}, DType::f32);
  const mamba::TensorView value = out.columns(actions, 1);
  for (std::int64_t t = 0; t < rollout.time(); ++t) {
    if (t % rollout.length() == 0) {
      rollout.initial[static_cast<std::size_t>(t / rollout.length())].copy_from(state, stream);
    }
    const StepViews step = rollout.at(t);
    environments.observe(step, stream);
    agent.remember(step.observations, state, step.begins, hidden, nullptr, stream);
    agent.decide(hidden.reshape({batch, agent.width()}), out, stream);
    mamba::copy(value, rollout.values.view().columns(t, 1), stream);
    environments.act(out.columns(0, actions), greedy, step, stream);
  }
  if (!bootstrap) return;
  StepViews next;
  next.observations = scratch.take({batch, 1, agent.config().observation}, DType::f32);
  next.begins = scratch.take({batch, 1}, DType::i32);
  next.decisions = scratch.take({batch, 1}, DType::i32);
  environments.observe(next, stream);
  mamba::StackState ahead = state.clone(stream);
  agent.remember(next.observations, ahead, next.begins, hidden, nullptr, stream);
  agent.decide(hidden.reshape({batch, agent.width()}), out, stream);
  mamba::copy(value, rollout.last_values.view().reshape({batch, 1}), stream);
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
