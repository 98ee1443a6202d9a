// Chunk-parallel in time, for batches too small to fill the chip. A chunk is a linear map of the
// state before it: over all its steps the decays multiply to exp(A sum(delta)), one exponential. So
//
//   first pass   every chunk but the last runs from zeros, without y, and leaves its last state and
//   the
//                sum of its deltas: -1 if there was a reset, after which nothing of the state
//                before is left. Chunk 0 knows its initial state, so it is done with y and all.
//   second pass  every chunk but the first composes what the chunks before it left into the state
//   that
//                it starts from, in order, and runs again with y. The last one writes the final
//                state.
//
// The work is between one and two times that of walking all of time at once.
#include <algorithm>

#include "kernels/scan_launch.hpp"

namespace mamba::cuda {

void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry) {
  constexpr std::int64_t multiple = 32;  // of any kernel's tile
  const std::int64_t time = op.x.dim(1), batch = op.x.dim(0), channels = op.x.dim(2);
  ScanChunks chunks;
  constexpr std::int64_t longest = std::int64_t{1} << 30;  // steps that one block counts
  const std::int64_t wanted = std::clamp<std::int64_t>(geometry.chunk, 1, longest);
  chunks.length =
      (std::min(wanted, std::max<std::int64_t>(time, 1)) + multiple - 1) / multiple * multiple;
  chunks.count = std::max<std::int64_t>((time + chunks.length - 1) / chunks.length, 1);
  if (chunks.count == 1) return scan_walk(op, stream, geometry, chunks, ScanPass::whole);
  Scratch scratch(stream);
  chunks.entries =
      scratch.take({batch, chunks.count - 1, channels, op.A_log.dim(1)}, DType::f32).data<float>();
  chunks.sums = scratch.take({batch, chunks.count - 1, channels}, DType::f32).data<float>();
  scan_walk(op, stream, geometry, chunks, ScanPass::first);
  scan_walk(op, stream, geometry, chunks, ScanPass::second);
}

}  // namespace mamba::cuda
