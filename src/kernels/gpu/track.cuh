// A tensor [batch, time, ...] in a kernel.
#pragma once

#include <cstdint>

#include <mamba/tensor_view.hpp>

namespace mamba::cuda {

// The last dimensions are contiguous; pitches in elements. Faster than RowPitches, which has rows
// by number: batch row and step are known here.
struct Track {
  const void* data = nullptr;
  std::int64_t row_pitch = 0, step_pitch = 0;

  Track() = default;
  explicit Track(const ConstTensorView& view) {
    if (!view) return;
    data = view.data();
    row_pitch = view.row_pitch();
    step_pitch = view.step_pitch();
  }
  template <class T>
  __device__ const T* at(std::int64_t b, std::int64_t t) const {
    return static_cast<const T*>(data) + b * row_pitch + t * step_pitch;
  }
  template <class T>
  __device__ T* out(std::int64_t b, std::int64_t t) const {
    return const_cast<T*>(at<T>(b, t));
  }
};

}  // namespace mamba::cuda
