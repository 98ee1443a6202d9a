// The selective scan on CUDA: which plan, cut how.
#include <algorithm>

#include "kernels/cuda.cuh"
#include "kernels/scan_launch.hpp"

namespace mamba::cuda {

namespace {

int sm_count(Device device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index()),
        "selective_scan");
  return count;
}

}  // namespace

ScanPlan plan(const SelectiveScan& op, int sm_count) {
  if (op.x.dim(1) == 1) return ScanPlan::step;
  return ScanPlan::sequential;
}

ScanGeometry geometry(const SelectiveScan& op, ScanPlan, int sm_count) {
  ScanGeometry g;
  g.states = op.x.dim(0) * op.x.dim(2) * 2 >= std::int64_t{4} * 128 * sm_count ? 8 : 4;
  return g;
}

void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan,
              const ScanGeometry& geometry) {
  if (plan == ScanPlan::step && op.x.dim(1) != 1) {
    throw ArgumentError("selective_scan", "plan", "time 1 for one step",
                        std::to_string(op.x.dim(1)));
  }
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const OnDevice current(stream.device(), "selective_scan");
  switch (plan) {
    case ScanPlan::step:
      return scan_step(op, stream);
    case ScanPlan::sequential:
      return scan_walk(op, stream, geometry);
    case ScanPlan::chunked:
      return scan_chunked(op, stream, geometry);
  }
}

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
