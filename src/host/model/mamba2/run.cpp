#include <mamba/detail/scan_chunk.hpp>
#include <mamba/mamba2_grad.hpp>

#include "detail/profiler_range.hpp"
#include "host/model/mamba2/mamba2_mixer.hpp"
#include "host/model/run_memory.hpp"

namespace mamba {

using detail::Mamba2;
using detail::Mamba2Activations;

namespace {

// Of a run without backward: the norm writes where it reads.
Mamba2Activations passing(const LayerConfig& c, const RunMemory& memory) {
  Mamba2Activations a;
  a.projected = memory.passing(projected_channels(c));
  a.convolved = memory.passing(c.conv_channels());
  a.scanned = a.gated = memory.passing(c.d_inner);
  return a;
}

// Of a run that has a backward.
Mamba2Activations lasting(const Mamba2& block, RunMemory memory, const Stream& stream) {
  const LayerConfig& c = block.c;
  Mamba2Activations a;
  a.projected = memory.lasting(projected_channels(c));
  a.convolved = memory.lasting(c.conv_channels());
  a.scanned = memory.lasting(c.d_inner);
  a.gated = memory.passing(c.d_inner);
  a.chunk_steps = detail::scan_chunk_steps(block.ssd(a), stream);
  a.chunk_states = memory.chunk_states(a.chunk_steps);
  return a;
}

}  // namespace

void Mamba2Mixer::forward(const detail::MixerForward& run, TensorView y, std::vector<Tensor>* kept,
                          Stream& stream) const {
  const detail::ProfilerRange range("mamba2 forward");
  Scratch scratch(stream);
  const Mamba2 block{run.config, run.weights};
  const RunMemory memory{run, kept, scratch};
  const Mamba2Activations a =
      kept != nullptr ? lasting(block, memory, stream) : passing(run.config, memory);
  block.forward(run, a, y, stream);
}

void Mamba2Mixer::backward(const detail::MixerBackward& run, std::vector<Tensor>& kept,
                           Stream& stream) const {
  const detail::ProfilerRange range("mamba2 backward");
  Scratch scratch(stream);
  const Mamba2 block{run.forward.config, run.forward.weights};
  const RunMemory memory{run.forward, run.recompute ? nullptr : &kept, scratch};
  const Mamba2Activations a = lasting(block, memory, stream);
  if (run.recompute) block.mix(run.forward, a, stream);
  block.backward(run, a, stream);
}

}  // namespace mamba
