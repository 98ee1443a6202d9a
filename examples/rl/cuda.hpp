// What runs in kernels of this library where the stream is a CUDA one. In a build without CUDA
// no_cuda.cpp stands in: there is no such stream, and nothing here is ever called.
#pragma once

#include <mamba/state.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace mamba_rl {

class Agent;
class Environments;
struct Add;
struct Advantages;
struct AgentConfig;
struct GruSequence;
struct GruSequenceGrad;
struct NormaliseAdvantages;
struct PpoLoss;
struct StepViews;

namespace cuda {

std::int64_t memory_of(mamba::Device device);
void observe(const Environments& environments, const StepViews& step, mamba::Stream& stream);
void act(Environments& environments, mamba::ConstTensorView logits, bool greedy,
         const StepViews& step, mamba::Stream& stream);
// Whether one kernel can step such an agent, and that kernel: from the step whose views are `first`
// on. `values` is [batch, 1] of that step.
bool can_collect(const AgentConfig& config);
void collect(const Agent& agent, Environments& environments, mamba::StackState& state,
             const StepViews& first, const mamba::TensorView& values, std::int64_t steps,
             bool greedy, mamba::Stream& stream);
// Carries a step and its values to the one `taken` [1] i32 steps after `first`, and adds 1 to that.
void keep_step(const StepViews& step, const mamba::TensorView& value, const StepViews& first,
               const mamba::TensorView& first_value, const mamba::TensorView& taken,
               mamba::Stream& stream);
void run(const Add& op, mamba::Stream& stream);
void run(const Advantages& op, mamba::Stream& stream);
void run(const NormaliseAdvantages& op, mamba::Stream& stream);
void run(const PpoLoss& op, mamba::Stream& stream);
void run(const GruSequence& op, mamba::Stream& stream);
// GruSequenceGrad but for the weight and the biases: dgates, also summed over time in `sums`
// [batch, 4 hidden], and the initial state's.
void backward(const GruSequenceGrad& op, const mamba::TensorView& sums, mamba::Stream& stream);

}  // namespace cuda
}  // namespace mamba_rl
