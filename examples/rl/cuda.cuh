// What every kernel file of this library needs: checked calls, the right device, the stream, views.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <mamba/error.hpp>
#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

#include <type_traits>

#include "cuda.hpp"

namespace mamba_rl::cuda {

// A failed call is a DeviceError with CUDA's own words.
inline void check(cudaError_t status, const char* where) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the library still works afterwards
  throw mamba::DeviceError(where, "CUDA", "success", cudaGetErrorString(status),
                           static_cast<int>(status));
}

// The calls of the driver that OnDevice needs. The runtime has loaded it; linking to it would keep
// programs from starting where there is none.
struct Driver {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY);
  decltype(&cuDevicePrimaryCtxRetain) retain = find<decltype(retain)>("cuDevicePrimaryCtxRetain");
  decltype(&cuDevicePrimaryCtxRelease) release =
      find<decltype(release)>("cuDevicePrimaryCtxRelease_v2");
  decltype(&cuCtxPushCurrent) push = find<decltype(push)>("cuCtxPushCurrent_v2");
  decltype(&cuCtxPopCurrent) pop = find<decltype(pop)>("cuCtxPopCurrent_v2");

  template <class Function>
  Function find(const char* name) const {
    return library == nullptr ? nullptr : reinterpret_cast<Function>(dlsym(library, name));
  }
  bool complete() const {
    return retain != nullptr && release != nullptr && push != nullptr && pop != nullptr;
  }
};
inline const Driver& driver() {
  static const Driver known;
  return known;
}

// Makes a device current for a scope and leaves the thread as it was found. Not by cudaSetDevice,
// which makes a context on the device that it comes back to, be it one that nobody uses: another
// device's primary context is pushed on the thread's stack of contexts and popped.
class OnDevice {
 public:
  OnDevice(mamba::Device device, const char* where) {
    int current = 0;
    check(cudaGetDevice(&current), where);
    if (current == device.index()) return;
    check(cudaInitDevice(device.index(), 0, 0), where);  // not made current
    CUcontext context = nullptr;
    if (!driver().complete() || driver().retain(&context, device.index()) != CUDA_SUCCESS) {
      throw mamba::DeviceError(where, "device", "a context on " + device.name(), "none");
    }
    entered_ = device.index();
    driver().push(context);
  }
  ~OnDevice() {
    if (entered_ < 0) return;
    CUcontext left = nullptr;
    driver().pop(&left);
    driver().release(entered_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int entered_ = -1;
};

inline cudaStream_t handle(const mamba::Stream& stream) {
  return static_cast<cudaStream_t>(stream.cuda_stream());
}

inline unsigned blocks_for(std::int64_t count, int threads) {
  return static_cast<unsigned>((count + threads - 1) / threads);
}

// A view inside kernels. T is const for what is only read; an absent view has no data.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t row = 0, step = 0;  // pitches

  Rows() = default;
  explicit Rows(
      const std::conditional_t<std::is_const_v<T>, mamba::ConstTensorView, mamba::TensorView>& view)
      : row(view.row_pitch()), step(view.step_pitch()) {
    if (view) data = view.template data<std::remove_const_t<T>>();
  }
  __device__ T* at(std::int64_t b, std::int64_t t = 0) const { return data + b * row + t * step; }
};

}  // namespace mamba_rl::cuda
