#include <mamba/detail/scan_chunk.hpp>
#include <mamba/mamba1_grad.hpp>

#include "detail/profiler_range.hpp"
#include "host/model/mamba1/mamba1_mixer.hpp"
#include "host/model/run_memory.hpp"

namespace mamba {

using detail::Mamba1;
using detail::Mamba1Activations;

namespace {

std::int64_t selected(const LayerConfig& c) { return c.dt_rank + 2 * c.d_state; }

// Of a run without backward: what is not read again is written over.
Mamba1Activations passing(const LayerConfig& c, const RunMemory& memory) {
  Mamba1Activations a;
  a.xz = memory.passing(2 * c.d_inner);
  a.u = memory.passing(c.d_inner);
  a.selection = memory.passing(selected(c));
  a.raw_selection = a.selection;
  a.gated = a.u;  // the scan may write where it reads
  a.scanned = a.gated;
  return a;
}

// Of a run that has a backward.
Mamba1Activations lasting(const Mamba1& block, RunMemory memory, const Stream& stream) {
  const LayerConfig& c = block.c;
  Mamba1Activations a;
  a.xz = memory.lasting(2 * c.d_inner);
  a.u = memory.lasting(c.d_inner);
  a.selection = memory.lasting(selected(c));
  a.raw_selection = c.norm_dt_b_c ? memory.lasting(selected(c)) : a.selection;
  a.dt = memory.lasting(c.d_inner);
  a.gated = memory.passing(c.d_inner);
  a.scanned = c.gated_norm ? memory.lasting(c.d_inner) : a.gated;
  SelectiveScan scan;
  scan.x = a.u;
  scan.A_log = block.w.A_log;
  a.chunk_steps = detail::scan_chunk_steps(scan, stream);
  a.chunk_states = memory.chunk_states(a.chunk_steps);
  return a;
}

}  // namespace

void Mamba1Mixer::forward(const detail::MixerForward& run, TensorView y, std::vector<Tensor>* kept,
                          Stream& stream) const {
  const detail::ProfilerRange range("mamba1 forward");
  Scratch scratch(stream);
  const Mamba1 block{run.config, run.weights};
  const RunMemory memory{run, kept, scratch};
  const Mamba1Activations a =
      kept != nullptr ? lasting(block, memory, stream) : passing(run.config, memory);
  block.forward(run, a, y, stream);
}

void Mamba1Mixer::backward(const detail::MixerBackward& run, std::vector<Tensor>& kept,
                           Stream& stream) const {
  const detail::ProfilerRange range("mamba1 backward");
  Scratch scratch(stream);
  const Mamba1 block{run.forward.config, run.forward.weights};
  const RunMemory memory{run.forward, run.recompute ? nullptr : &kept, scratch};
  const Mamba1Activations a = lasting(block, memory, stream);
  if (run.recompute) block.mix(run.forward, a, stream);
  block.backward(run, a, stream);
}

}  // namespace mamba
