// What the dispatcher (ssd.cu) calls, one function per plan.
#pragma once

#include "kernels/scan/ssd.hpp"

namespace mamba::cuda {

void ssd_step(const Ssd& op, Stream& stream);
void ssd_steps(const Ssd& op, Stream& stream);
void ssd_chunks(const Ssd& op, Stream& stream, const SsdGeometry& geometry);
// Whether its sizes, dtype and memory allow chunks, and the shared memory of their blocks.
bool can_chunk(const Ssd& op);
int ssd_chunks_bytes(const Ssd& op, const SsdGeometry& geometry);

}  // namespace mamba::cuda
