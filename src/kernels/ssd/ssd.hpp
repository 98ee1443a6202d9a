// Which kernel runs an Ssd on CUDA, for its dispatch and for tests. Plain C++.
#pragma once

#include <cstdint>

#include <mamba/ops.hpp>

#include "detail/limits.hpp"

namespace mamba::cuda {

// step        one step of the recurrence in f32, straight from and to the state
// steps       the recurrence in f32, any case
// chunks      products of 16-bit matrices over chunks of 64 steps, by warps
// warpgroups  the same by warpgroups, whose products only 9.0 has
//
// step and steps give the same bits however time is cut and whoever else is in the batch.
enum class SsdPlan { step, steps, chunks, warpgroups };

// The plan run() takes on such a device.
SsdPlan plan(const Ssd& op, const Limits& device);
// Whether a plan can do the operation on such a device.
bool can_run(const Ssd& op, SsdPlan plan, const Limits& device);

// How the work of chunks and of warpgroups is cut.
struct SsdGeometry {
  int heads = 1;     // or warpgroups of a block, as far as they share a group and fit
  int segments = 1;  // runs of chunks walked at the same time, which costs some of the work twice
  int divided = 0;   // of warpgroups: so many blocks at the end are one for each of theirs
};
SsdGeometry geometry(const Ssd& op, SsdPlan plan, const Limits& device);

// run() with another plan or geometry. A plan that cannot do the operation is an ArgumentError.
void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan);
void run_ssd(const Ssd& op, Stream& stream, SsdPlan plan, const SsdGeometry& geometry);

}  // namespace mamba::cuda
