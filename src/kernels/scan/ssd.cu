// Ssd on CUDA: which plan, cut how.
#include <mamba/error.hpp>

#include "kernels/gpu/cuda.cuh"
#include "kernels/scan/ssd_launch.hpp"

namespace mamba::cuda {

bool can_run(const Ssd& op, SsdPlan plan, const Limits& device) {
  if (plan == SsdPlan::step) return op.x.dim(1) == 1 && !op.chunk_states;
  return plan == SsdPlan::steps ||
         (can_chunk(op) && ssd_chunks_bytes(op, {}) <= device.shared_memory);
}

SsdPlan plan(const Ssd& op, const Limits& device) {
  if (can_run(op, SsdPlan::step, device)) return SsdPlan::step;
  constexpr std::int64_t few = 32;  // steps
  return op.x.dim(1) >= few && can_run(op, SsdPlan::chunks, device) ? SsdPlan::chunks
                                                                    : SsdPlan::steps;
}

SsdGeometry geometry(const Ssd& op, const Limits& device) {
  SsdGeometry g;
  g.heads = 8;
  while (g.heads > 1 && ssd_chunks_bytes(op, g) > device.shared_memory) --g.heads;
  return g;
}

void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan, const SsdGeometry& geometry) {
  if (!can_run(op, plan, limits(stream.device(), "ssd"))) {
    throw ArgumentError("ssd", "plan", "one that can do this operation",
                        plan == SsdPlan::step ? "one step" : "chunks");
  }
  if (op.x.dim(0) == 0) return;
  const OnDevice current(stream.device(), "ssd");
  switch (plan) {
    case SsdPlan::step:
      return ssd_step(op, stream);
    case SsdPlan::steps:
      return ssd_steps(op, stream);
    case SsdPlan::chunks:
      return ssd_chunks(op, stream, geometry);
  }
}
void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan) {
  run_ssd(op, stream, plan, geometry(op, limits(stream.device(), "ssd")));
}

// Kept states are a quarter of what x, B, C and y of their steps take with 64 channels and 128
// states of a head in f32.
std::int64_t scan_chunk_steps(const Ssd&, const Stream&) { return 256; }

void run(const Ssd& op, Stream& stream) {
  run_ssd(op, stream, plan(op, limits(stream.device(), "ssd")));
}

}  // namespace mamba::cuda
