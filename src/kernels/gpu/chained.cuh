// Kernels that begin while the one before them still runs (programmatic dependent launch, compute
// capability 9.0): between the short kernels of a decode step, launching and beginning cost as much
// as the work. Such a kernel lets the next one begin, does what depends on nothing, and waits.
//
// Before it has waited, kernels queued long before it may still run, for each of them may have
// begun early. It may prefetch into L2, where nothing is out of date, and read, past L1, what no
// kernel of the chain writes: under a ConstantWeights, weights. There the chain's first kernel does
// not begin early; so the others begin after everything queued before it has ended.
//
// So every kernel that launch_chained() launches calls wait_for_previous() in every thread, before
// it reads or writes what another kernel touches.
#pragma once

#include <cstdint>

#include "detail/stream_access.hpp"
#include "kernels/gpu/cuda.cuh"
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

// In the order of the stream, but where kernel and device know how, allowed to begin before what is
// queued there has ended; `more`: a further attribute of the launch. The device is current.
template <class... Parameters, class... Arguments>
void launch_with(void (*kernel)(Parameters...), const cudaLaunchAttribute* more, dim3 grid,
                 dim3 block, std::size_t shared, Stream& stream, const char* where,
                 const Arguments&... arguments) {
  const int capability = allow_shared(kernel, shared, stream.device(), where);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (capability >= sm_90 && StreamAccess::begins_early(stream)) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (more != nullptr) attributes[count++] = *more;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = handle(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), where);
}
template <class... Parameters, class... Arguments>
void launch_chained(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                    Stream& stream, const char* where, const Arguments&... arguments) {
  launch_with(kernel, nullptr, grid, block, shared, stream, where, arguments...);
}
// Blocks form clusters of `cluster` neighbours; more than one needs a kernel whose
// capability_of() is sm_90.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int cluster, dim3 grid, dim3 block,
                     std::size_t shared, Stream& stream, const char* where,
                     const Arguments&... arguments) {
  if (cluster > 1 && capability_of(kernel, stream.device(), where) < sm_90) {
    throw DeviceError(where, "kernel", "code for 9.0 on a device of 9.0, for clusters", "less");
  }
  cudaLaunchAttribute clusters{};
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  launch_with(kernel, cluster > 1 ? &clusters : nullptr, grid, block, shared, stream, where,
              arguments...);
}
// All blocks run at the same time, and may wait for each other. More than the device holds: an
// error.
template <class... Parameters, class... Arguments>
void launch_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                     Stream& stream, const char* where, const Arguments&... arguments) {
  if (!limits(stream.device(), where).cooperative) {
    throw DeviceError(where, "device", "one that runs all blocks of a kernel at the same time",
                      stream.device().name());
  }
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  launch_with(kernel, &together, grid, block, shared, stream, where, arguments...);
}

}  // namespace mamba::cuda
