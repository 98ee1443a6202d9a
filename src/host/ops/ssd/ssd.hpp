// How an Ssd is computed on the CPU.
#pragma once

#include <mamba/ops.hpp>

namespace mamba::host {

enum class SsdPlan {
  steps,   // the recurrence: the same bits however time is cut
  chunks,  // products of matrices over chunks of at most ssd_chunk steps
};

// Chunks begin at multiples of this in time, or where a gradient's chunk does, and end early before
// a reset: cut there, a sequence has the same bits.
constexpr std::int64_t ssd_chunk = 64;

SsdPlan plan(const Ssd& op);
bool can_run(const Ssd& op, SsdPlan plan);
void run(const Ssd& op, Stream& stream, SsdPlan plan);

}  // namespace mamba::host
