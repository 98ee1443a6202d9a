// What every kernel file of this library needs: checked calls, the right device, the stream, views.
#pragma once

#include <cuda_runtime.h>

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
  throw mamba::DeviceError(where, "CUDA", "success", cudaGetErrorString(status));
}

// Makes a device current for a scope and leaves the thread's device as it was found.
class OnDevice {
 public:
  OnDevice(mamba::Device device, const char* where) {
    check(cudaGetDevice(&before_), where);
    if (before_ != device.index()) check(cudaSetDevice(device.index()), where);
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
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
