// What the dispatcher (selective_scan.cu) calls, one function per plan, and what they share.
#pragma once

#include "kernels/selective_scan.hpp"

namespace mamba::cuda {

void scan_step(const SelectiveScan& op, Stream& stream);
void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);

// Time in chunks (see scan_chunked.cu).
struct ScanChunks {
  std::int64_t length = 0, count = 1;
  float* entries = nullptr;  // [batch, count - 1, channels, d_state]
  float* sums = nullptr;     // [batch, count - 1, channels]
};
enum class ScanPass { whole, first, second };

// The kernel that walks time.
void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry,
               const ScanChunks& chunks, ScanPass pass);

}  // namespace mamba::cuda
