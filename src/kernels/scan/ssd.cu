// Ssd on CUDA: which plan, cut how.
#include <algorithm>

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

namespace {

// As many heads as fit.
SsdGeometry fitted(const Ssd& op, SsdGeometry g, const Limits& device) {
  while (g.heads > 1 && ssd_chunks_bytes(op, g) > device.shared_memory) --g.heads;
  return g;
}

}  // namespace

// The least time of the busiest multiprocessor, in that of one chunk where it has nothing else to
// do. Segments cost a walk of their own, of less than half of the work.
SsdGeometry geometry(const Ssd& op, const Limits& device) {
  constexpr double summary = 0.45, launches = 3;
  const std::int64_t chunks = (op.x.dim(1) + 63) / 64;
  SsdGeometry best;
  double least = 0;
  for (const int heads : {1, 2, 4, 8}) {
    for (std::int64_t segments = 1; segments <= std::min<std::int64_t>(chunks, 64); ++segments) {
      const SsdGeometry g = fitted(op, {heads, static_cast<int>(segments)}, device);
      const SsdBlocks blocks = ssd_chunk_blocks(op, g, device);
      const auto each = static_cast<double>((chunks + segments - 1) / segments);
      const auto time = [&](std::int64_t count) {
        const std::int64_t at_once = std::int64_t{blocks.together} * device.multiprocessors;
        const auto rounds = static_cast<double>((count + at_once - 1) / at_once);
        const double there = std::min(static_cast<double>(blocks.together),
                                      static_cast<double>(count) / device.multiprocessors);
        return rounds * each * (0.7 + 0.04 * blocks.warps * std::max(1.0, there));
      };
      double cost = time(blocks.of_segment * segments);
      if (segments > 1) cost += summary * time(blocks.of_segment * (segments - 1)) + launches;
      if (least != 0 && cost >= least) continue;
      least = cost;
      best = g;
    }
  }
  return best;
}

void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan, const SsdGeometry& geometry) {
  const Limits device = limits(stream.device(), "ssd");
  if (!can_run(op, plan, device)) {
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
      return ssd_chunks(op, stream, fitted(op, geometry, device));
  }
}
void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan) {
  const Limits device = limits(stream.device(), "ssd");
  const bool cuts = plan == SsdPlan::chunks && can_run(op, plan, device);
  run_ssd(op, stream, plan, cuts ? geometry(op, device) : SsdGeometry{});
}

// Kept states are a quarter of what x, B, C and y of their steps take with 64 channels and 128
// states of a head in f32.
std::int64_t scan_chunk_steps(const Ssd&, const Stream&) { return 256; }

void run(const Ssd& op, Stream& stream) {
  run_ssd(op, stream, plan(op, limits(stream.device(), "ssd")));
}

}  // namespace mamba::cuda
