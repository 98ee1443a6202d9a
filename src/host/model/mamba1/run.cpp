#include <mamba/detail/scan_chunk.hpp>
#include <mamba/mamba1_grad.hpp>

#include "host/model/kept.hpp"
#include "host/model/mamba1/mamba1_mixer.hpp"

namespace mamba {

using detail::Mamba1;
using detail::Mamba1Activations;

namespace {

// Of a run without backward: all in scratch, and what is not read again is written over.
Mamba1Activations passing(const LayerConfig& c, std::int64_t batch, std::int64_t time, DType dtype,
                          Scratch& scratch) {
  Mamba1Activations a;
  a.xz = scratch.take({batch, time, 2 * c.d_inner}, dtype);
  a.u = scratch.take({batch, time, c.d_inner}, dtype);
  a.selection = scratch.take({batch, time, c.dt_rank + 2 * c.d_state}, dtype);
  a.raw_selection = a.selection;
  a.gated = a.u;  // the scan may write where it reads
  a.scanned = a.gated;
  return a;
}

// Of a run that has a backward: in `kept`, or all in scratch if that is nullptr.
Mamba1Activations lasting(const detail::MixerForward& run, std::vector<Tensor>* kept,
                          Scratch& scratch, const Stream& stream) {
  const LayerConfig& c = run.config;
  const std::int64_t batch = run.x.dim(0);
  const std::int64_t time = run.x.dim(1);
  const DType dtype = run.x.dtype();
  const Shape d_inner{batch, time, c.d_inner};
  const Shape selection{batch, time, c.dt_rank + 2 * c.d_state};
  SelectiveScan scan;
  scan.x = ConstTensorView(nullptr, d_inner, dtype, stream.device());
  scan.A_log = run.weights.A_log;

  std::size_t next = 0;
  const auto take = [&](const Shape& shape, DType type) {
    if (kept == nullptr) return scratch.take(shape, type);
    if (next == kept->size()) kept->emplace_back();
    return shaped((*kept)[next++], shape, type, stream.device());
  };
  Mamba1Activations a;
  a.chunk_steps = detail::scan_chunk_steps(scan, stream);
  const std::int64_t chunks = (time + a.chunk_steps - 1) / a.chunk_steps;
  a.xz = take({batch, time, 2 * c.d_inner}, dtype);
  a.u = take(d_inner, dtype);
  a.selection = take(selection, dtype);
  a.raw_selection = c.norm_dt_b_c ? take(selection, dtype) : a.selection;
  a.dt = take(d_inner, dtype);
  a.gated = scratch.take(d_inner, dtype);
  a.scanned = c.gated_norm ? take(d_inner, dtype) : a.gated;
  a.chunk_states = take({batch, chunks, c.d_inner, c.d_state}, DType::f32);
  return a;
}

}  // namespace

void Mamba1Mixer::forward(const detail::MixerForward& run, TensorView y, std::vector<Tensor>* kept,
                          Stream& stream) const {
  Scratch scratch(stream);
  const Mamba1Activations a =
      kept != nullptr ? lasting(run, kept, scratch, stream)
                      : passing(run.config, run.x.dim(0), run.x.dim(1), run.x.dtype(), scratch);
  Mamba1{run.config, run.weights}.forward(run, a, y, stream);
}

void Mamba1Mixer::backward(const detail::MixerBackward& run, std::vector<Tensor>& kept,
                           Stream& stream) const {
  Scratch scratch(stream);
  const Mamba1 block{run.forward.config, run.forward.weights};
  const Mamba1Activations a =
      lasting(run.forward, run.recompute ? nullptr : &kept, scratch, stream);
  if (run.recompute) block.mix(run.forward, a, stream);
  block.backward(run, a, stream);
}

}  // namespace mamba
