// SsdGradPlan::mma: its two kernels.
#include "kernels/gpu/launch.cuh"
#include "kernels/scan/ssd_grad_mma_chunk.cuh"

namespace mamba::cuda {

int mma_most_heads(int shared_memory) {
  return (shared_memory - MmaChunk::fixed_bytes) / (4 * MmaChunk::kept_floats);
}

void run_mma_rows(const SsdGradOperands& op, Stream& stream) {
  constexpr const char* where = "ssd_grad";
  const std::int64_t walks = (1 + op.kept) * op.rows * op.heads;
  launch(ssd_grad_mma_walk_kernel, static_cast<unsigned>(walks), mma_walk_threads,
         MmaWalk::shared_bytes, stream, where, op);
  if (op.chunks == 0) return;
  const int most = (op.heads / op.groups + op.head_blocks - 1) / op.head_blocks;
  const std::int64_t blocks = op.rows * op.chunks * op.groups * op.head_blocks;
  launch(ssd_grad_mma_chunk_kernel, static_cast<unsigned>(blocks), mma_chunk_threads,
         static_cast<std::size_t>(MmaChunk::shared_bytes(most)), stream, where, op);
}

}  // namespace mamba::cuda
