// SsdGradPlan::mma: its two kernels.
#include <algorithm>

#include "kernels/gpu/launch.cuh"
#include "kernels/scan/ssd_grad/mma_chunk.cuh"

namespace mamba::cuda {

MmaRoom::MmaRoom(int shared_memory) : buffers(2) {
  if (shared_memory < MmaChunk::shared_bytes(4, buffers)) buffers = 1;
  const int rest = shared_memory - MmaChunk::shared_bytes(0, buffers);
  heads = std::clamp(rest / (4 * MmaChunk::kept_floats), 0, ssd_most_heads);
}

void run_mma_rows(const SsdGradOperands& op, Stream& stream) {
  constexpr const char* where = "ssd_grad";
  const std::int64_t walks = (1 + op.kept) * op.rows * MmaWalk::blocks(op);
  launch(ssd_grad_mma_walk_kernel, static_cast<unsigned>(walks), mma_walk_threads,
         MmaWalk::shared_bytes, stream, where, op);
  if (op.chunks == 0) return;
  const int most = (op.heads / op.groups + op.head_blocks - 1) / op.head_blocks;
  const std::int64_t blocks = op.rows * op.chunks * op.groups * op.head_blocks;
  launch(ssd_grad_mma_chunk_kernel, static_cast<unsigned>(blocks), mma_chunk_threads,
         static_cast<std::size_t>(MmaChunk::shared_bytes(most, op.buffers)), stream, where, op);
}

}  // namespace mamba::cuda
