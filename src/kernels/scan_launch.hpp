// What the dispatcher (selective_scan.cu) calls, one function per plan, and what they share.
#pragma once

#include "kernels/selective_scan.hpp"

namespace mamba::cuda {

void scan_step(const SelectiveScan& op, Stream& stream);
void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);

// Time in chunks (see scan_chunked.cu); one chunk is the whole of it.
struct ScanChunks {
  std::int64_t length = 0, count = 1;
  float* entries = nullptr;  // [batch, count, channels, d_state]; absent with one chunk
  float* sums = nullptr;     // [batch, count, channels]
};

// The kernel that walks time, through all chunks; with `summary`, what each chunk but the last leaves.
void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
               const ScanChunks& chunks, bool summary);

}  // namespace mamba::cuda
