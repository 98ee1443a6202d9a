// Segments of a sequence, which are walked at the same time: first each from no state, for what it
// adds; then from the states that these come to.
#pragma once

#include <algorithm>

#include "kernels/ssd/ssd_operands.cuh"

namespace mamba::cuda {

// What the segments of a sequence hand on, [batch, segments, channels, d_state], and by how much
// each decays a state, [batch, segments, heads]; absent where there is one segment.
struct SsdSegments {
  float* states;
  float* decays;
};
constexpr float starts_anew = -1;  // the decay of a segment with a reset

// How many segments there are, of how many chunks, and how many chunks lie between two states that
// are kept: in a cut that has these.
template <class Cut>
void cut_segments(const Ssd& op, int wanted, Cut& cut) {
  const auto chunks = static_cast<int>((op.x.dim(1) + ssd_chunk - 1) / ssd_chunk);
  cut.segment_chunks = std::max(1, (chunks + wanted - 1) / wanted);
  cut.segments = std::max(1, (chunks + cut.segment_chunks - 1) / cut.segment_chunks);
  cut.kept = op.chunk_states ? static_cast<int>(op.chunk_steps / ssd_chunk) : 0;
}

// From what each of `count` segments adds to the states before each.
void join_segments(const SsdOperands& op, int count, const SsdSegments& segments, Stream& stream);

}  // namespace mamba::cuda
