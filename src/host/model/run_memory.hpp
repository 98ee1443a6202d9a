// Where a mixer's run has its tensors.
#pragma once

#include <vector>

#include <mamba/detail/mixer.hpp>

#include "host/model/kept.hpp"

namespace mamba {

// What passes is in scratch. What lasts is in `kept`, in the order in which it is asked for, or in
// scratch too if that is nullptr.
struct RunMemory {
  const detail::MixerForward& run;
  std::vector<Tensor>* kept;
  Scratch& scratch;
  std::size_t next = 0;

  // [batch, time, channels] of the model's dtype.
  TensorView passing(std::int64_t channels) const {
    return scratch.take(shape(channels), run.x.dtype());
  }
  TensorView lasting(std::int64_t channels) { return lasting(shape(channels), run.x.dtype()); }
  // States every `chunk_steps`, for a gradient.
  TensorView chunk_states(std::int64_t chunk_steps) {
    const LayerConfig& c = run.config;
    const std::int64_t chunks = (run.x.dim(1) + chunk_steps - 1) / chunk_steps;
    return lasting({run.x.dim(0), chunks, c.d_inner, c.d_state}, DType::f32);
  }

 private:
  Shape shape(std::int64_t channels) const { return {run.x.dim(0), run.x.dim(1), channels}; }
  TensorView lasting(const Shape& shape, DType dtype) {
    if (kept == nullptr) return scratch.take(shape, dtype);
    if (next == kept->size()) kept->emplace_back();
    return shaped((*kept)[next++], shape, dtype, run.x.device());
  }
};

}  // namespace mamba
