// Every launch of a kernel: in the order of a stream, whose device is current, with as much shared
// memory as a block of the device has. What fails is a DeviceError of `where`.
#pragma once

#include "detail/stream_access.hpp"
#include "kernels/gpu/cuda.cuh"

namespace mamba::cuda {

struct LaunchAttributes {
  cudaLaunchAttribute all[2] = {};
  unsigned count = 0;

  cudaLaunchAttributeValue& add(cudaLaunchAttributeID id) {
    all[count].id = id;
    return all[count++].val;
  }
  // Where kernel (by its capability_of()) and device know how, before what is queued has ended.
  void begin_early(int capability, Stream& stream) {
    if (capability < sm_90 || !StreamAccess::begins_early(stream)) return;
    add(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed =
        1;
  }
};

// What all launches come to.
template <class... Parameters, class... Arguments>
void launch_with(LaunchAttributes attributes, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                 std::size_t shared, Stream& stream, const char* where,
                 const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = handle(stream);
  config.attrs = attributes.all;
  config.numAttrs = attributes.count;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), where);
}

// `shared`: bytes of dynamic shared memory of a block.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
            Stream& stream, const char* where, const Arguments&... arguments) {
  if (shared > 0) allow_shared(kernel, shared, stream.device(), where);
  launch_with({}, kernel, grid, block, shared, stream, where, arguments...);
}
// A kernel that may begin early: see chained.cuh.
template <class... Parameters, class... Arguments>
void launch_chained(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                    Stream& stream, const char* where, const Arguments&... arguments) {
  LaunchAttributes attributes;
  attributes.begin_early(allow_shared(kernel, shared, stream.device(), where), stream);
  launch_with(attributes, kernel, grid, block, shared, stream, where, arguments...);
}
// The same in clusters of `cluster` neighbouring blocks; more than one needs a kernel whose
// capability_of() is sm_90.
template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), int cluster, dim3 grid, dim3 block,
                     std::size_t shared, Stream& stream, const char* where,
                     const Arguments&... arguments) {
  const int capability = allow_shared(kernel, shared, stream.device(), where);
  if (cluster > 1 && capability < sm_90) {
    throw DeviceError(where, "kernel", "code for 9.0 on a device of 9.0, for clusters", "less");
  }
  LaunchAttributes attributes;
  attributes.begin_early(capability, stream);
  if (cluster > 1) {
    attributes.add(cudaLaunchAttributeClusterDimension).clusterDim = {
        static_cast<unsigned>(cluster), 1, 1};
  }
  launch_with(attributes, kernel, grid, block, shared, stream, where, arguments...);
}
// The same, all blocks at the same time, so that they may wait for each other. More than the device
// holds: an error.
template <class... Parameters, class... Arguments>
void launch_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared,
                     Stream& stream, const char* where, const Arguments&... arguments) {
  if (!limits(stream.device(), where).cooperative) {
    throw DeviceError(where, "device", "one that runs all blocks of a kernel at the same time",
                      stream.device().name());
  }
  LaunchAttributes attributes;
  attributes.begin_early(allow_shared(kernel, shared, stream.device(), where), stream);
  attributes.add(cudaLaunchAttributeCooperative).cooperative = 1;
  launch_with(attributes, kernel, grid, block, shared, stream, where, arguments...);
}

}  // namespace mamba::cuda
