// Kernels that begin while the one before them still runs (programmatic dependent launch, compute
// capability 9.0): between the short kernels of a decode step, launching and beginning cost as much
// as the work. Such a kernel lets the next one begin, does what depends on nothing, and waits.
//
// Before it has waited, kernels queued long before it may still run, for each of them may have
// begun early. It may prefetch into L2, where nothing is out of date, and read, past L1, what no
// kernel of the chain writes: under a detail::ConstantWeights, weights. There the chain's first
// kernel does not begin early; so the others begin after everything queued before it has ended.
//
// So every kernel that launch_chained() launches calls wait_for_previous() in every thread, before
// it reads or writes what another kernel touches.
#pragma once

#include <cstdint>

#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

// What must come before weights are read.
__device__ __forceinline__ void wait_for_weights(bool constant) {
  if (!constant) wait_for_previous();
}
// V of them before their turn: from L2, whatever L1 has.
template <int V, class T>
__device__ __forceinline__ Packed<T, V> load_early(const T* from) {
  return {load_from_l2<typename Packed<T, V>::Words>(from)};
}

// Row `b` of a row map before its turn, when it may still be about to change: past L1, where it
// must not stay. Good for a prefetch alone. -1: a row that is not there.
__device__ __forceinline__ std::int64_t likely_row(const std::int32_t* rows, std::int64_t b,
                                                   std::int64_t state_rows) {
  const std::int64_t row = rows != nullptr ? __ldcg(rows + b) : b;
  return row < state_rows ? row : -1;
}

}  // namespace mamba::cuda
