// Ssd on CUDA: which plan, cut how.
#include <algorithm>

#include <mamba/error.hpp>

#include "kernels/gpu/cuda.cuh"
#include "kernels/ssd/ssd_launch.hpp"

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

// The least time, in that of a chunk where a multiprocessor has little to do. As measured on an
// H200, up to some eleven warps on a multiprocessor take no longer than four, from there on the
// time grows with them; to begin and end a segment takes a chunk's time, and the first walk that
// segments need half as long as the main one.
SsdGeometry geometry(const Ssd& op, const Limits& device) {
  constexpr double summary = 0.5, launches = 2, full = 11;
  const std::int64_t chunks = (op.x.dim(1) + 63) / 64, sms = device.multiprocessors;
  SsdGeometry best;
  double least = 0;
  for (const int heads : {1, 2, 4, 8}) {
    SsdGeometry g = fitted(op, {heads, 1}, device);
    const SsdBlocks blocks = ssd_chunk_blocks(op, g, device);
    const std::int64_t at_once = blocks.together * sms;
    const auto of_chunk = [&](std::int64_t count) {
      const auto warps = static_cast<double>(blocks.warps * ((count + sms - 1) / sms));
      return count == 0 ? 0 : std::max(1.0, warps / full);
    };
    const auto walk = [&](std::int64_t count) {
      return static_cast<double>(count / at_once) * of_chunk(at_once) + of_chunk(count % at_once);
    };
    for (g.segments = 1; g.segments <= std::min<std::int64_t>(chunks, 64); ++g.segments) {
      double cost = walk(blocks.of_segment * g.segments);
      if (g.segments > 1) cost += summary * walk(blocks.of_segment * (g.segments - 1));
      cost *= static_cast<double>((chunks + g.segments - 1) / g.segments + 1);
      if (g.segments > 1) cost += launches;
      if (least == 0 || cost < least) {
        least = cost;
        best = g;
      }
      if (blocks.of_segment * g.segments > 4 * at_once) break;
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
