#include <mamba/detail/scan_chunk.hpp>
#include <mamba/mamba2_grad.hpp>

#include "host/model/kept.hpp"
#include "host/model/mamba2/mamba2_mixer.hpp"

namespace mamba {

using detail::Mamba2;
using detail::Mamba2Activations;

namespace {

// Tensors of a run: in `kept`, in the order in which they are asked for, or in scratch if that is
// nullptr.
struct Memory {
  const detail::MixerForward& run;
  std::vector<Tensor>* kept;
  Scratch& scratch;
  std::size_t next = 0;

  Shape shape(std::int64_t channels) const { return {run.x.dim(0), run.x.dim(1), channels}; }
  TensorView passing(std::int64_t channels) const {
    return scratch.take(shape(channels), run.x.dtype());
  }
  TensorView lasting(const Shape& shape, DType dtype) {
    if (kept == nullptr) return scratch.take(shape, dtype);
    if (next == kept->size()) kept->emplace_back();
    return shaped((*kept)[next++], shape, dtype, run.x.device());
  }
  TensorView lasting(std::int64_t channels) { return lasting(shape(channels), run.x.dtype()); }
};

std::int64_t projected_channels(const LayerConfig& c) {
  return c.d_inner + c.conv_channels() + c.d_inner / c.head_dim;
}

// Of a run without backward: the norm writes where it reads.
Mamba2Activations passing(const LayerConfig& c, const Memory& memory) {
  Mamba2Activations a;
  a.projected = memory.passing(projected_channels(c));
  a.convolved = memory.passing(c.conv_channels());
  a.scanned = a.gated = memory.passing(c.d_inner);
  return a;
}

// Of a run that has a backward.
Mamba2Activations lasting(const Mamba2& block, Memory memory, const Stream& stream) {
  const LayerConfig& c = block.c;
  Mamba2Activations a;
  a.projected = memory.lasting(projected_channels(c));
  a.convolved = memory.lasting(c.conv_channels());
  a.scanned = memory.lasting(c.d_inner);
  a.gated = memory.passing(c.d_inner);
  a.chunk_steps = detail::scan_chunk_steps(block.ssd(a), stream);
  const std::int64_t chunks = (memory.run.x.dim(1) + a.chunk_steps - 1) / a.chunk_steps;
  a.chunk_states = memory.lasting({memory.run.x.dim(0), chunks, c.d_inner, c.d_state}, DType::f32);
  return a;
}

}  // namespace

void Mamba2Mixer::forward(const detail::MixerForward& run, TensorView y, std::vector<Tensor>* kept,
                          Stream& stream) const {
  Scratch scratch(stream);
  const Mamba2 block{run.config, run.weights};
  const Memory memory{run, kept, scratch};
  const Mamba2Activations a =
      kept != nullptr ? lasting(block, memory, stream) : passing(run.config, memory);
  block.forward(run, a, y, stream);
}

void Mamba2Mixer::backward(const detail::MixerBackward& run, std::vector<Tensor>& kept,
                           Stream& stream) const {
  Scratch scratch(stream);
  const Mamba2 block{run.forward.config, run.forward.weights};
  const Memory memory{run.forward, run.recompute ? nullptr : &kept, scratch};
  const Mamba2Activations a = lasting(block, memory, stream);
  if (run.recompute) block.mix(run.forward, a, stream);
  block.backward(run, a, stream);
}

}  // namespace mamba
