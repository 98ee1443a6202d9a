#include "rl/env/environments.hpp"

#include <mamba/check.hpp>

#include "rl/cuda.hpp"
#include "rl/env/choice.hpp"

namespace mamba_rl {

namespace {

constexpr const char* where = "Environments";
constexpr std::int64_t state_fields = sizeof(EnvironmentState) / sizeof(std::int32_t);

template <class T>
T* row(const mamba::TensorView& view, std::int64_t b) {
  return view.data<T>() + b * view.row_pitch();
}

}  // namespace

Environments::Environments(const EnvironmentConfig& config, std::int32_t count, std::int32_t first,
                           mamba::Device device)
    : config_(config), first_(first) {
  mamba::check::range(where, "num_bits", config.num_bits, 1, 16);
  mamba::check::range(where, "delay", config.delay, 1, std::int64_t{1} << 28);
  mamba::check::range(where, "count", count, 1, std::int64_t{1} << 24);
  mamba::check::range(where, "first", first, 0, std::int64_t{1} << 30);
  states_ = mamba::Tensor::zeros({count, state_fields}, mamba::DType::i32, device);
}

void Environments::observe(const StepViews& step, mamba::Stream& stream) const {
  if (stream.device().is_cuda()) return cuda::observe(*this, step, stream);
  const auto* states = static_cast<const EnvironmentState*>(states_.view().data());
  for (std::int32_t b = 0; b < count(); ++b) {
    mamba_rl::observe(config_, first_ + b, states[b], row<float>(step.observations, b));
    *row<std::int32_t>(step.begins, b) = states[b].step == 0 ? 1 : 0;
    *row<std::int32_t>(step.decisions, b) = decision(config_, states[b]);
  }
}

void Environments::act(mamba::ConstTensorView logits, bool greedy, const StepViews& step,
                       mamba::Stream& stream) {
  mamba::check::shape(where, "logits", logits, {count(), action_count(config_)});
  if (stream.device().is_cuda()) return cuda::act(*this, logits, greedy, step, stream);
  auto* states = static_cast<EnvironmentState*>(states_.view().data());
  for (std::int32_t b = 0; b < count(); ++b) {
    const Choice choice =
        choose(logits.data<float>() + b * logits.row_pitch(), action_count(config_),
               action_uniform(config_, first_ + b, states[b]), greedy);
    const Outcome outcome = mamba_rl::act(config_, first_ + b, states[b], choice.action);
    *row<std::int32_t>(step.actions, b) = choice.action;
    *row<float>(step.log_probs, b) = choice.log_prob;
    *row<float>(step.rewards, b) = outcome.reward;
    *row<std::int32_t>(step.ends, b) = outcome.ends ? 1 : 0;
  }
}

void Environments::restart(std::int32_t delay, mamba::Stream& stream) {
  mamba::check::range(where, "delay", delay, 1, std::int64_t{1} << 28);
  config_.delay = delay;
  stream.synchronize();
  mamba::Tensor host = states_.to(mamba::Device::cpu());
  auto* states = static_cast<EnvironmentState*>(host.view().data());
  for (std::int32_t b = 0; b < count(); ++b) states[b] = {states[b].episode + 1, 0, 0};
  mamba::copy(host, states_, stream);
  stream.synchronize();
}

}  // namespace mamba_rl
