// The environments in device memory: a thread steps one of them with the host's own functions.
#include "rl/cuda.cuh"
#include "rl/env/choice.hpp"
#include "rl/env/environments.hpp"
#include "rl/env/environments_step.cuh"

namespace mamba_rl::cuda {

namespace {

constexpr int threads = 64;

__global__ void __launch_bounds__(threads)
    observe_kernel(const EnvironmentConfig config, std::int32_t first, std::int32_t count,
                   const EnvironmentState* states, const StepRows step) {
  const auto b = static_cast<std::int32_t>(blockIdx.x * threads + threadIdx.x);
  if (b >= count) return;
  mamba_rl::observe(config, first + b, states[b], step.observations.at(b));
  step.begin(config, states[b], b);
}

__global__ void __launch_bounds__(threads)
    act_kernel(const EnvironmentConfig config, std::int32_t first, std::int32_t count,
               const Rows<const float> logits, bool greedy, EnvironmentState* states,
               const StepRows step) {
  const auto b = static_cast<std::int32_t>(blockIdx.x * threads + threadIdx.x);
  if (b < count) step.act(config, first + b, states[b], logits.at(b), greedy, b);
}

// One block, whose threads have all read `taken` before it changes.
constexpr int keep_threads = 1024;

__global__ void __launch_bounds__(keep_threads)
    keep_step_kernel(const StepRows step, const Rows<float> value, const StepRows first,
                     const Rows<float> first_value, std::int64_t batch, std::int64_t seen,
                     std::int32_t* taken) {
  const std::int64_t t = *taken;
  __syncthreads();
  if (threadIdx.x == 0) *taken += 1;
  for (std::int64_t b = threadIdx.x; b < batch; b += keep_threads) {
    for (std::int64_t j = 0; j < seen; ++j) {
      first.observations.at(b, t)[j] = step.observations.at(b)[j];
    }
    *first.begins.at(b, t) = *step.begins.at(b);
    *first.decisions.at(b, t) = *step.decisions.at(b);
    *first.actions.at(b, t) = *step.actions.at(b);
    *first.log_probs.at(b, t) = *step.log_probs.at(b);
    *first.rewards.at(b, t) = *step.rewards.at(b);
    *first.ends.at(b, t) = *step.ends.at(b);
    *first_value.at(b, t) = *value.at(b);
  }
}

}  // namespace

std::int64_t memory_of(mamba::Device device) {
  const OnDevice current(device, "memory_of");
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "memory_of");
  return static_cast<std::int64_t>(free);
}

void observe(const Environments& environments, const StepViews& step, mamba::Stream& stream) {
  const OnDevice current(stream.device(), "Environments");
  observe_kernel<<<blocks_for(environments.count(), threads), threads, 0, handle(stream)>>>(
      environments.config(), environments.first(), environments.count(),
      static_cast<const EnvironmentState*>(environments.states().view().data()), StepRows(step));
  check(cudaGetLastError(), "Environments");
}

void act(Environments& environments, mamba::ConstTensorView logits, bool greedy,
         const StepViews& step, mamba::Stream& stream) {
  const OnDevice current(stream.device(), "Environments");
  act_kernel<<<blocks_for(environments.count(), threads), threads, 0, handle(stream)>>>(
      environments.config(), environments.first(), environments.count(), Rows<const float>(logits),
      greedy, static_cast<EnvironmentState*>(environments.states().view().data()), StepRows(step));
  check(cudaGetLastError(), "Environments");
}

void keep_step(const StepViews& step, const mamba::TensorView& value, const StepViews& first,
               const mamba::TensorView& first_value, const mamba::TensorView& taken,
               mamba::Stream& stream) {
  const OnDevice current(stream.device(), "rollout");
  keep_step_kernel<<<1, keep_threads, 0, handle(stream)>>>(
      StepRows(step), Rows<float>(value), StepRows(first), Rows<float>(first_value),
      step.observations.dim(0), step.observations.dim(2), taken.data<std::int32_t>());
  check(cudaGetLastError(), "rollout");
}

}  // namespace mamba_rl::cuda
