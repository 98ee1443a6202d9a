// What every kernel file needs: checked calls, the right device, what a kernel may ask for, the
// stream.
#pragma once

#include <cuda_runtime.h>

#include <new>
#include <string>
#include <vector>

#include "detail/backend.hpp"
#include "detail/limits.hpp"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "mamba's kernels need compute capability 8.0: bf16 on the tensor cores and cp.async"
#endif

namespace mamba::cuda {

// A failed call is a DeviceError with CUDA's own words.
inline void check(cudaError_t status, const char* where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the library still works afterwards
  throw DeviceError(where, "CUDA", "success", cudaGetErrorString(status), static_cast<int>(status));
}

// What the process keeps for each device. Never freed: objects that outlive main() release what
// they have on a device.
template <class T>
T& kept_for(Device device, const char* where) {
  static auto& all = *new std::vector<T>(static_cast<std::size_t>(device_count()));
  const auto index = static_cast<std::size_t>(device.index());
  if (index >= all.size()) {
    check_present(where, device);
    throw DeviceError(where, "device", "one that was there at the first call", device.name());
  }
  return all[index];
}

inline int multiprocessors(Device device, const char* where) {
  return limits(device, where).multiprocessors;
}

// Bytes that a block can have.
inline int shared_memory(Device device, const char* where) {
  return limits(device, where).shared_memory;
}

// Makes a device current for a scope and leaves the thread as it was found.
//
// The runtime's own way, cudaSetDevice there and back, makes a context on the device it comes back
// to: on cuda:0, for a thread that never asked for any, and some hundred MB of it are gone. So
// another device's primary context is pushed on the thread's stack of contexts, which the runtime
// follows, and popped at the end: what cudaSetDevice was last told, or that it was told nothing,
// stays as it is.
class OnDevice {
 public:
  OnDevice(Device device, const char* where) {
    int current = 0;
    check(cudaGetDevice(&current), where);
    if (current != device.index()) enter(device, where);
  }
  // For destructors: where the device cannot be entered, nothing is changed.
  OnDevice(Device device, std::nothrow_t) noexcept;
  // For what belongs to no device, pinned memory or waiting for an event, but needs a context: the
  // thread's if it has one, else that of the first device that has one, or of cuda:0.
  explicit OnDevice(const char* where);
  explicit OnDevice(std::nothrow_t) noexcept;
  ~OnDevice() {
    if (entered_) leave();
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  void enter(Device device, const char* where);
  static void leave() noexcept;

  bool entered_ = false;
};

// While it lives, this thread may do what recording a graph forbids, for it says that it knows:
// what is made stays, and not with the graph.
class AllocationsInCapture {
 public:
  AllocationsInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~AllocationsInCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  AllocationsInCapture(const AllocationsInCapture&) = delete;
  AllocationsInCapture& operator=(const AllocationsInCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// From this capability on, 10 major + minor, kernels can begin while the one before them runs, and
// blocks form clusters.
constexpr int sm_90 = 90;

// In a kernel, the capability that it is being compiled for; on the host that is capability_of().
#ifdef __CUDA_ARCH__
constexpr int compiled_for = __CUDA_ARCH__ / 10;
#else
constexpr int compiled_for = 0;
#endif

// The capability that a kernel can count on: the device's, or less if that is what its code was
// compiled for, as PTX for 8.0 that runs on a device of 9.0. The device is current.
int capability_of(const void* kernel, Device device, const char* where);
template <class... Parameters>
int capability_of(void (*kernel)(Parameters...), Device device, const char* where) {
  return capability_of(reinterpret_cast<const void*>(kernel), device, where);
}

// To be called before a launch of a kernel that may need more than 48 KiB of shared memory, of
// which `dynamic` bytes are dynamic. What a launch may ask for is a property of the kernel that all
// threads share, so it is set once, to all that the device has. More than that is a DeviceError.
// The device is current. Returns capability_of().
int allow_shared(const void* kernel, std::size_t dynamic, Device device, const char* where);
template <class... Parameters>
int allow_shared(void (*kernel)(Parameters...), std::size_t dynamic, Device device,
                 const char* where) {
  return allow_shared(reinterpret_cast<const void*>(kernel), dynamic, device, where);
}

inline cudaStream_t handle(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.cuda_stream());
}

}  // namespace mamba::cuda
