// What the dispatcher (ssd.cu) calls, one function per plan.
#pragma once

#include "kernels/ssd/ssd.hpp"

namespace mamba::cuda {

void ssd_step(const Ssd& op, Stream& stream);
void ssd_steps(const Ssd& op, Stream& stream);
void ssd_chunks(const Ssd& op, Stream& stream, const SsdGeometry& geometry);
void ssd_warpgroups(const Ssd& op, Stream& stream, const SsdGeometry& geometry);
// Whether its sizes, dtype and memory allow chunks, and, where they do, warpgroups.
bool can_chunk(const Ssd& op);
bool ssd_warpgroups_know(const Ssd& op);
// The shared memory of a block.
int ssd_chunks_bytes(const Ssd& op, const SsdGeometry& geometry);
int ssd_warpgroups_bytes(const Ssd& op, const SsdGeometry& geometry);
// Their blocks: for each segment, warps of one, and how many a multiprocessor has at a time.
struct SsdBlocks {
  std::int64_t of_segment;
  int warps, together;
};
SsdBlocks ssd_chunk_blocks(const Ssd& op, const SsdGeometry& geometry, const Limits& device);
SsdBlocks ssd_warpgroup_blocks(const Ssd& op, const SsdGeometry& geometry);

}  // namespace mamba::cuda
