// What every kernel file needs: checked calls, the right device, the stream.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "detail/backend.hpp"

namespace mamba::cuda {

// A failed call is a DeviceError with CUDA's own words.
inline void check(cudaError_t status, const char* where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the library still works afterwards
  throw DeviceError(where, "CUDA", "success", cudaGetErrorString(status));
}

inline int multiprocessors(Device device, const char* where) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index()), where);
  return count;
}

// Bytes that a block can have.
inline int shared_memory(Device device, const char* where) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device.index()),
        where);
  return bytes;
}

// Makes a device current for a scope and leaves the thread's device as it was found.
class OnDevice {
 public:
  OnDevice(Device device, const char* where) {
    check(cudaGetDevice(&before_), where);
    changed_ = before_ != device.index();
    if (changed_) check(cudaSetDevice(device.index()), where);
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaStream_t handle(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.cuda_stream());
}

}  // namespace mamba::cuda
