// What runs in kernels of this library where the stream is a CUDA one. In a build without CUDA
// no_cuda.cpp stands in: there is no such stream, and nothing here is ever called.
#pragma once

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace mamba_rl {

class Environments;
struct Add;
struct Advantages;
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
void run(const Add& op, mamba::Stream& stream);
void run(const Advantages& op, mamba::Stream& stream);
void run(const NormaliseAdvantages& op, mamba::Stream& stream);
void run(const PpoLoss& op, mamba::Stream& stream);
void run(const GruSequence& op, mamba::Stream& stream);
void run(const GruSequenceGrad& op, mamba::Stream& stream);

}  // namespace cuda
}  // namespace mamba_rl
