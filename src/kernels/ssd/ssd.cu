// Ssd on CUDA: which plan, cut how.
#include <algorithm>

#include <mamba/error.hpp>

#include "kernels/gpu/cuda.cuh"
#include "kernels/ssd/ssd_launch.hpp"

namespace mamba::cuda {

#ifdef MAMBA_HAS_SM_90A  // set by the build
constexpr bool has_warpgroups = true;
#else
constexpr bool has_warpgroups = false;
bool ssd_warpgroups_know(const Ssd&) { return false; }
int ssd_warpgroups_bytes(const Ssd&, const SsdGeometry&) { return 0; }
SsdBlocks ssd_warpgroup_blocks(const Ssd&, const SsdGeometry&) { return {}; }
void ssd_warpgroups(const Ssd&, Stream&, const SsdGeometry&) {}
#endif

namespace {

bool is_cut(SsdPlan plan) { return plan == SsdPlan::chunks || plan == SsdPlan::warpgroups; }

int bytes_of(const Ssd& op, SsdPlan plan, const SsdGeometry& g) {
  return plan == SsdPlan::chunks ? ssd_chunks_bytes(op, g) : ssd_warpgroups_bytes(op, g);
}
// As many heads as fit.
SsdGeometry fitted(const Ssd& op, SsdPlan plan, SsdGeometry g, const Limits& device) {
  while (g.heads > 1 && bytes_of(op, plan, g) > device.shared_memory) --g.heads;
  return g;
}

// What a cut costs. The unit is the time of a chunk where a multiprocessor has little to do, up to
// `full` warps with channels; from there on it grows with them. To begin and end a segment takes
// `ends` chunks' time, the first walk that segments need `summary` of the main one, and what is
// launched for segments `launches`. From runs on an H200, where a chunk of two warpgroups takes
// 2.6 us.
struct Costs {
  double full, summary, ends, launches;
};
Costs costs_of(SsdPlan plan) {
  return plan == SsdPlan::chunks ? Costs{11, 0.5, 1, 2} : Costs{6, 0.6, 1, 2};
}

}  // namespace

bool can_run(const Ssd& op, SsdPlan plan, const Limits& device) {
  if (plan == SsdPlan::step) return op.x.dim(1) == 1 && !op.chunk_states;
  if (plan == SsdPlan::steps) return true;
  if (!can_chunk(op)) return false;
  if (plan == SsdPlan::warpgroups &&
      (!has_warpgroups || device.capability != sm_90 || !ssd_warpgroups_know(op))) {
    return false;
  }
  return bytes_of(op, plan, {}) <= device.shared_memory;
}

SsdPlan plan(const Ssd& op, const Limits& device) {
  if (can_run(op, SsdPlan::step, device)) return SsdPlan::step;
  constexpr std::int64_t few = 32;  // steps
  if (op.x.dim(1) < few) return SsdPlan::steps;
  for (const SsdPlan plan : {SsdPlan::warpgroups, SsdPlan::chunks}) {
    if (can_run(op, plan, device)) return plan;
  }
  return SsdPlan::steps;
}

// The cut that costs least.
SsdGeometry geometry(const Ssd& op, SsdPlan plan, const Limits& device) {
  const Costs costs = costs_of(plan);
  const std::int64_t chunks = (op.x.dim(1) + 63) / 64, sms = device.multiprocessors;
  SsdGeometry best;
  double least = 0;
  for (const int heads : {1, 2, 4, 8}) {
    SsdGeometry g = fitted(op, plan, {heads, 1}, device);
    const SsdBlocks blocks =
        plan == SsdPlan::chunks ? ssd_chunk_blocks(op, g, device) : ssd_warpgroup_blocks(op, g);
    const std::int64_t at_once = blocks.together * sms;
    const auto of_chunk = [&](std::int64_t count) {
      const auto warps = static_cast<double>(blocks.warps * ((count + sms - 1) / sms));
      return count == 0 ? 0 : std::max(1.0, warps / costs.full);
    };
    // Where fewer blocks remain than half of those that fit, each can be two.
    const auto divides = [&](std::int64_t count) {
      return plan == SsdPlan::warpgroups && blocks.warps > 4 && 2 * (count % at_once) <= at_once;
    };
    const auto walk = [&](std::int64_t count) {
      const std::int64_t rest = count % at_once;
      return static_cast<double>(count / at_once) * of_chunk(at_once) +
             (rest > 0 && divides(count) ? 1 : of_chunk(rest));
    };
    for (g.segments = 1; g.segments <= std::min<std::int64_t>(chunks, 64); ++g.segments) {
      double cost = walk(blocks.of_segment * g.segments);
      if (g.segments > 1) cost += costs.summary * walk(blocks.of_segment * (g.segments - 1));
      cost *= static_cast<double>((chunks + g.segments - 1) / g.segments) + costs.ends;
      if (g.segments > 1) cost += costs.launches;
      if (least == 0 || cost < least) {
        least = cost;
        best = g;
        const std::int64_t all = blocks.of_segment * g.segments;
        best.divided = divides(all) ? static_cast<int>(all % at_once) : 0;
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
                        plan == SsdPlan::step     ? "one step"
                        : plan == SsdPlan::chunks ? "chunks"
                                                  : "warpgroups");
  }
  if (op.x.dim(0) == 0) return;
  const OnDevice current(stream.device(), "ssd");
  switch (plan) {
    case SsdPlan::step:
      return ssd_step(op, stream);
    case SsdPlan::steps:
      return ssd_steps(op, stream);
    case SsdPlan::chunks:
      return ssd_chunks(op, stream, fitted(op, plan, geometry, device));
    case SsdPlan::warpgroups:
      return ssd_warpgroups(op, stream, fitted(op, plan, geometry, device));
  }
}
void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan) {
  const Limits device = limits(stream.device(), "ssd");
  const bool cuts = is_cut(plan) && can_run(op, plan, device);
  run_ssd(op, stream, plan, cuts ? geometry(op, plan, device) : SsdGeometry{});
}

// Kept states are a quarter of what x, B, C and y of their steps take with 64 channels and 128
// states of a head in f32.
std::int64_t scan_chunk_steps(const Ssd&, const Stream&) { return 256; }

void run(const Ssd& op, Stream& stream) {
  run_ssd(op, stream, plan(op, limits(stream.device(), "ssd")));
}

}  // namespace mamba::cuda
