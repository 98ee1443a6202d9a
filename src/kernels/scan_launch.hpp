// What the dispatcher (selective_scan.cu) calls, one function per plan.
#pragma once

#include "kernels/selective_scan.hpp"

namespace mamba::cuda {

void scan_step(const SelectiveScan& op, Stream& stream);
void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);
void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);

}  // namespace mamba::cuda
