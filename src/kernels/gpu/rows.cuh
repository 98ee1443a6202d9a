// Rows of the last dimension of a view, and how the threads of a block are shared out over rows.
#pragma once

#include <cstdint>

#include <mamba/tensor.hpp>

namespace mamba::cuda {

// A view of rank 1 to 3 as rows of channels. A slice of [batch, time, channels] has two pitches;
// where its rows are one pitch apart all the same, batch and time merge, and kernels do not divide.
struct RowPitches {
  std::int64_t time = 1;  // rows in a run
  std::int64_t batch_pitch = 0;
  std::int64_t time_pitch = 0;
  bool even = true;  // row r begins at r time_pitch

  RowPitches() = default;
  RowPitches(std::int64_t batch, std::int64_t steps, std::int64_t row_pitch,
             std::int64_t step_pitch)
      : time(steps), batch_pitch(row_pitch), time_pitch(step_pitch) {
    if (time == 1) time_pitch = batch_pitch;
    even = batch == 1 || time == 1 || batch_pitch == time * time_pitch;
  }
  explicit RowPitches(const ConstTensorView& view) {
    if (view.rank() == 2) *this = RowPitches(1, view.dim(0), 0, view.row_pitch());
    if (view.rank() == 3) {
      *this = RowPitches(view.dim(0), view.dim(1), view.row_pitch(), view.step_pitch());
    }
  }

  // In elements.
  __device__ __forceinline__ std::int64_t offset(std::int64_t r) const {
    return even ? r * time_pitch : (r / time) * batch_pitch + (r % time) * time_pitch;
  }

  // On the host: whether every row begins on a multiple of `bytes`.
  bool aligned(const void* base, std::int64_t element_bytes, std::int64_t bytes) const {
    return reinterpret_cast<std::uintptr_t>(base) % static_cast<std::uintptr_t>(bytes) == 0 &&
           time_pitch * element_bytes % bytes == 0 &&
           (even || batch_pitch * element_bytes % bytes == 0);
  }
};

// The smallest power of two that is at least `units`, but at most `most`: so many threads work side
// by side on one row, and what is left of the block takes further rows.
inline int lanes_per_row(std::int64_t units, int most) {
  int lanes = 1;
  while (lanes < units && lanes < most) lanes *= 2;
  return lanes;
}

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace mamba::cuda
