// The environments in device memory: a thread steps one of them with the host's own functions.
#include "choice.hpp"
#include "cuda.cuh"
#include "environments.hpp"
#include "environments_step.cuh"

namespace mamba_rl::cuda {

namespace {

constexpr int threads = 64;

__global__ void __launch_bounds__(threads)
    observe_kernel(const EnvironmentConfig config, std::int32_t first, std::int32_t count,
                   const EnvironmentState* states, const StepRows step) {
  const auto b = static_cast<std::int32_t>(blockIdx.x * threads + threadIdx.x);
  if (b < count) step.observe(config, first + b, states[b], b);
}

__global__ void __launch_bounds__(threads)
    act_kernel(const EnvironmentConfig config, std::int32_t first, std::int32_t count,
               const Rows<const float> logits, bool greedy, EnvironmentState* states,
               const StepRows step) {
  const auto b = static_cast<std::int32_t>(blockIdx.x * threads + threadIdx.x);
  if (b < count) step.act(config, first + b, states[b], logits.at(b), greedy, b);
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

}  // namespace mamba_rl::cuda
