// Which kernel runs a SelectiveScan on CUDA, for its dispatch and for tests. Plain C++.
#pragma once

#include <cstdint>

#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>

namespace mamba::cuda {

// step        time 1, straight from and to the state
// sequential  one block walks all of time for some channels; d_state is cut over lanes
// chunked     time is cut too: the state at the end of each chunk first, then all chunks at once
//
// Each can do every case but step, which needs time 1. step and sequential give the same bits
// however time is cut and whoever else is in the batch; chunked rounds differently.
enum class ScanPlan { step, sequential, chunked };

// The plan run() takes. `sm_count`: multiprocessors of the device.
ScanPlan plan(const SelectiveScan& op, int sm_count);

// run() with another plan. A plan that cannot do the operation is an ArgumentError.
void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan);

// How the work is cut.
struct ScanGeometry {
  int states = 8;        // sequential: of a channel held by one thread, 4 or 8, where d_state <= 16
  int channels = 8;      // chunked: of a warp, 8, 16 or 32
  int warps = 8;         // chunked: of a block, 1 to 16
  std::int64_t leg = 0;  // steps that one block walks before another takes over; 0: all
};
ScanGeometry geometry(const SelectiveScan& op, ScanPlan plan, int sm_count);
void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan, const ScanGeometry& geometry);

// SelectiveScanGrad with another geometry (channels and warps of it) than run() takes.
void run_scan_grad(const SelectiveScanGrad& op, Stream& stream, const ScanGeometry& geometry);

}  // namespace mamba::cuda
