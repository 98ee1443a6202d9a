// SsdGradPlan::mma: its two kernels.
#include <algorithm>

#include "kernels/gpu/launch.cuh"
#include "kernels/ssd_grad/mma_chunk.cuh"
#include "kernels/ssd_grad/mma_walk.cuh"

namespace mamba::cuda {

MmaRoom::MmaRoom(int shared_memory) : buffers(2) {
  if (shared_memory < MmaPlace::shared_bytes(4, buffers)) buffers = 1;
  const int rest = shared_memory - MmaPlace::shared_bytes(0, buffers);
  heads = std::clamp(rest / (4 * MmaPlace::kept_floats), 0, ssd_most_heads);
  if (shared_memory < MmaWalk<4>::shared_bytes) heads = 0;
}

namespace {

constexpr const char* where = "ssd_grad";

template <int kHeads>
void walk(const SsdGradOperands& op, Stream& stream) {
  using Walk = MmaWalk<kHeads>;
  launch(ssd_grad_mma_walk_kernel<kHeads>,
         static_cast<unsigned>((1 + op.kept) * op.rows * Walk::blocks(op)), Walk::threads,
         Walk::shared_bytes, stream, where, op);
}

}  // namespace

void run_mma_rows(const SsdGradOperands& op, Stream& stream) {
  // The more heads share B and C the better, as long as the walks back in time fill the device.
  const int most = multiprocessors(stream.device(), where);
  if (op.rows * MmaWalk<4>::blocks(op) >= most) {
    walk<4>(op, stream);
  } else if (2 * op.rows * MmaWalk<2>::blocks(op) >= most) {
    walk<2>(op, stream);
  } else {
    walk<1>(op, stream);
  }
  if (op.chunks == 0) return;
  const int heads = (op.heads / op.groups + op.head_blocks - 1) / op.head_blocks;
  const std::int64_t blocks = op.rows * op.chunks * op.groups * op.head_blocks;
  launch(ssd_grad_mma_chunk_kernel, static_cast<unsigned>(blocks), mma_chunk_threads,
         static_cast<std::size_t>(MmaPlace::shared_bytes(heads, op.buffers)), stream, where, op);
}

}  // namespace mamba::cuda
