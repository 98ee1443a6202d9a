// What the dispatcher (selective_scan.cu) calls, one function per plan.
#pragma once

#include "kernels/scan/selective_scan.hpp"

namespace mamba::cuda {

void scan_step(const SelectiveScan& op, Stream& stream);
void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);
// The shared memory of its blocks, which grows with the states of a channel.
int scan_walk_bytes(const SelectiveScan& op);
void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);

}  // namespace mamba::cuda
