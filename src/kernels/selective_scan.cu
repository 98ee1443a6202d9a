// The selective scan on CUDA: which plan, cut how.
#include <algorithm>

#include "kernels/cuda.cuh"
#include "kernels/scan_launch.hpp"

namespace mamba::cuda {

namespace {

constexpr std::int64_t divide_up(std::int64_t value, std::int64_t by) {
  return (value + by - 1) / by;
}

// Blocks that walk time at once: of 64 channels with eight states a thread, 32 with four, and fewer
// when a channel has many states.
std::int64_t blocks_of(const SelectiveScan& op, int states) {
  const std::int64_t d_state = op.A_log.dim(1);
  const std::int64_t channels = d_state > 128 ? 2 : d_state > 32 ? 8 : 8 * states;
  return op.x.dim(0) * divide_up(op.x.dim(2), channels);
}

}  // namespace

ScanPlan plan(const SelectiveScan& op, int sm_count) {
  const std::int64_t time = op.x.dim(1);
  if (time == 1) return ScanPlan::step;
  // Cutting time costs up to twice the work. It pays where less than one and a half small blocks
  // fall to each multiprocessor, and needs chunks of some length.
  const bool few = 2 * blocks_of(op, 4) < std::int64_t{3} * sm_count;
  return few && time >= 256 ? ScanPlan::chunked : ScanPlan::sequential;
}

ScanGeometry geometry(const SelectiveScan& op, ScanPlan plan, int sm_count) {
  ScanGeometry g;
  // Five large blocks share a multiprocessor; below four each, small ones spread the work better.
  g.states = blocks_of(op, 8) >= std::int64_t{4} * sm_count ? 8 : 4;
  if (plan != ScanPlan::chunked) return g;
  // Both passes have one chunk less than there are; about 3.7 blocks for each multiprocessor.
  const std::int64_t time = std::max<std::int64_t>(op.x.dim(1), 1);
  for (const int states : {8, 4}) {
    const std::int64_t chunks = 1 + 37 * sm_count / (10 * blocks_of(op, states));
    g.states = states;
    g.chunk = std::max<std::int64_t>(divide_up(time, chunks), 64);
    if (g.chunk >= 512) break;
  }
  return g;
}

void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan,
              const ScanGeometry& geometry) {
  if (plan == ScanPlan::step && op.x.dim(1) != 1) {
    throw ArgumentError("selective_scan", "plan", "time 1 for one step",
                        std::to_string(op.x.dim(1)));
  }
  constexpr std::int64_t longest = std::int64_t{1} << 30;  // steps that one block counts
  if (plan == ScanPlan::sequential && op.x.dim(1) > longest) plan = ScanPlan::chunked;
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const OnDevice current(stream.device(), "selective_scan");
  switch (plan) {
    case ScanPlan::step:
      return scan_step(op, stream);
    case ScanPlan::sequential:
      return scan_walk(op, stream, geometry, {std::max<std::int64_t>(op.x.dim(1), 1)},
                       ScanPass::whole);
    case ScanPlan::chunked:
      return scan_chunked(op, stream, geometry);
  }
}

namespace {

int sm_count(Device device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index()),
        "selective_scan");
  return count;
}

}  // namespace

void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan) {
  run_scan(op, stream, plan, geometry(op, plan, sm_count(stream.device())));
}

void run(const SelectiveScan& op, Stream& stream) {
  if (op.chunk_states) {
    throw DeviceError("selective_scan", "device", "cpu (for chunk_states)", stream.device().name());
  }
  const int count = sm_count(stream.device());
  const ScanPlan chosen = plan(op, count);
  run_scan(op, stream, chosen, geometry(op, chosen, count));
}

}  // namespace mamba::cuda
