// What the dispatcher (selective_scan.cu) calls, one function per plan.
#pragma once

#include "kernels/scan/selective_scan.hpp"

namespace mamba::cuda {

void scan_step(const SelectiveScan& op, Stream& stream);
void scan_walk(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);
// The shared memory of its blocks, which grows with the states of a channel.
int scan_walk_bytes(const SelectiveScan& op);
void scan_chunked(const SelectiveScan& op, Stream& stream, const ScanGeometry& geometry);

// Rings of so many channels a warp: the most warps of a block, for the registers they need, and the
// shared memory of a block of `warps`.
struct RingNeeds {
  int most_warps, of_block, of_warp;

  int bytes(int warps) const { return of_block + warps * of_warp; }

  // Ring::shared_bytes(warps, d_state) is linear in warps.
  template <class Ring>
  static RingNeeds of(int most_warps, int d_state) {
    const int none = Ring::shared_bytes(0, d_state);
    return {most_warps, none, Ring::shared_bytes(1, d_state) - none};
  }
};
RingNeeds ring_needs(const SelectiveScan& op, int channels, const Limits& device);
RingNeeds ring_needs(const SelectiveScanGrad& op, int channels, const Limits& device);

}  // namespace mamba::cuda
