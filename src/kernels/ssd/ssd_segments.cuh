// Segments of a sequence, which are walked at the same time: first each from no state, for what it
// adds; then from the states that these come to.
#pragma once

#include "kernels/ssd/ssd_operands.cuh"

namespace mamba::cuda {

// What the segments of a sequence hand on, [batch, segments, channels, d_state], and by how much
// each decays a state, [batch, segments, heads]; absent where there is one segment.
struct SsdSegments {
  float* states;
  float* decays;
};
constexpr float starts_anew = -1;  // the decay of a segment with a reset

// From what each of `count` segments adds to the states before each.
void join_segments(const SsdOperands& op, int count, const SsdSegments& segments, Stream& stream);

}  // namespace mamba::cuda
