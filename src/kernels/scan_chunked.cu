// Chunk-parallel in time, for batches too small to fill the chip. A chunk is a linear map of the state
// before it: over all its steps the decays multiply to exp(A sum(delta)), one exponential. So
//
//   1. every chunk but the last runs the recurrence alone, from zeros (the first from the initial state),
//      without y; it leaves its last state and the sum of its deltas, -1 if there was a reset inside,
//      after which nothing of the state before is left
//   2. every chunk composes what the chunks before it left into the state it starts from, in order, and
//   3. runs again with y; the last one writes the final state.
//
// 2 and 3 are one launch. Pass 1 also copies the initial state, since the final state may be the same
// memory. The work is nearly twice that of one block walking all of time.
#include <algorithm>

#include "kernels/scan_launch.hpp"

namespace mamba::cuda {

void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  constexpr std::int64_t multiple = 32;  // of any kernel's tile
  const std::int64_t time = op.x.dim(1), batch = op.x.dim(0), channels = op.x.dim(2);
  ScanChunks chunks;
  chunks.length = std::max((std::min(geometry.chunk, time) + multiple - 1) / multiple, 1L) * multiple;
  chunks.count = std::max<std::int64_t>((time + chunks.length - 1) / chunks.length, 1);
  Scratch scratch(stream);
  if (chunks.count > 1) {
    chunks.entries =
        scratch.take({batch, chunks.count, channels, op.A_log.dim(1)}, DType::f32).data<float>();
    chunks.sums = scratch.take({batch, chunks.count, channels}, DType::f32).data<float>();
    ScanGeometry summary = geometry;
    summary.states = 4;
    summary.helpers = 0;
    scan_walk(op, stream, summary, chunks, true);
  }
  scan_walk(op, stream, geometry, chunks, false);
}

}  // namespace mamba::cuda
