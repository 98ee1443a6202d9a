// Kernels that begin while the one before them still runs (programmatic dependent launch, compute
// capability 9.0): between the short kernels of a decode step, launching and beginning cost as much
// as the work. Such a kernel first does what depends on no other link of the chain (it fetches
// weights), then waits, and lets the next one begin in its turn. Nothing that writes weights is a
// link, and the first link of a chain begins when all before it has ended.
#pragma once

#include "detail/stream_access.hpp"
#include "kernels/cuda.cuh"

namespace mamba::cuda {

// All that earlier kernels wrote is there from here on. Every link must call it in every thread
// before it reads or writes what another link touches.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may take multiprocessors that are free, up to its own wait.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Whether the current device has such launches.
inline bool has_chains(const char* where) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), where);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), where);
  return major >= 9;
}

template <class... Parameters, class... Arguments>
void launch_chained(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                    Stream& stream, const char* where, const Arguments&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  const bool chained = StreamAccess::chain(stream) && has_chains(where);
  config.stream = handle(stream);
  StreamAccess::chain(stream);
  config.attrs = &early;
  config.numAttrs = chained ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), where);
}

}  // namespace mamba::cuda
