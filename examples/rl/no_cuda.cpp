// Stands in for the kernels in a build without CUDA.
#include "cuda.hpp"

#include <mamba/error.hpp>

namespace mamba_rl::cuda {

namespace {

[[noreturn]] void refuse() {
  throw mamba::DeviceError("mamba_rl", "device", "a build with CUDA", "one without");
}

}  // namespace

std::int64_t memory_of(mamba::Device) { refuse(); }
void observe(const Environments&, const StepViews&, mamba::Stream&) { refuse(); }
void act(Environments&, mamba::ConstTensorView, bool, const StepViews&, mamba::Stream&) {
  refuse();
}
bool can_collect(const AgentConfig&) { refuse(); }
void collect(const Agent&, Environments&, mamba::StackState&, const StepViews&,
             const mamba::TensorView&, std::int64_t, bool, mamba::Stream&) {
  refuse();
}
void keep_step(const StepViews&, const mamba::TensorView&, const StepViews&,
               const mamba::TensorView&, const mamba::TensorView&, mamba::Stream&) {
  refuse();
}
void run(const Add&, mamba::Stream&) { refuse(); }
void run(const Advantages&, mamba::Stream&) { refuse(); }
void run(const NormaliseAdvantages&, mamba::Stream&) { refuse(); }
void run(const PpoLoss&, mamba::Stream&) { refuse(); }
void run(const GruSequence&, mamba::Stream&) { refuse(); }
void backward(const GruSequenceGrad&, const mamba::TensorView&, mamba::Stream&) { refuse(); }

}  // namespace mamba_rl::cuda
