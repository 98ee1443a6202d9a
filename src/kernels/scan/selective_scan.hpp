// Which kernel runs a SelectiveScan on CUDA, for its dispatch and for tests. Plain C++.
#pragma once

#include <cstdint>

#include <mamba/grad_ops.hpp>
#include <mamba/ops.hpp>

#include "detail/limits.hpp"

namespace mamba::cuda {

// step        time 1, straight from and to the state
// sequential  a block walks time for some channels; d_state is cut over lanes
// chunked     lanes have a chunk of time each, and the warps of a block hand states on in a ring
//
// Each can do every case but step, which needs time 1, and sequential, which needs A_log and
// softplus. step and sequential give the same bits however time is cut and whoever else is in the
// batch; chunked rounds differently.
enum class ScanPlan { step, sequential, chunked };

// The plan run() takes on such a device.
ScanPlan plan(const SelectiveScan& op, const Limits& device);

// run() with another plan. A plan that cannot do the operation is an ArgumentError.
void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan);

// How the work is cut.
struct ScanGeometry {
  int states = 8;  // sequential: of a channel held by one thread, 4 or 8; d_state 9 to 16 only
  std::int64_t leg = 0;  // sequential: steps that one block walks before another goes on; 0: all
  int channels = 8;      // rings: of a warp, 8 (not the gradient), 16 or 32; 32 if states may grow
  int warps = 8;         // rings: of a block, as far as registers and shared memory allow
};
ScanGeometry geometry(const SelectiveScan& op, ScanPlan plan, const Limits& device);
ScanGeometry geometry(const SelectiveScanGrad& op, const Limits& device);
void run_scan(const SelectiveScan& op, Stream& stream, ScanPlan plan, const ScanGeometry& geometry);

// SelectiveScanGrad with another geometry (channels and warps of it) than run() takes.
void run_scan_grad(const SelectiveScanGrad& op, Stream& stream, const ScanGeometry& geometry);

}  // namespace mamba::cuda
