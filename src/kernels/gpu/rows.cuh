// Rows of the last dimension of a view, and how the threads of a block are shared out over rows.
#pragma once

#include <cstdint>

#include <mamba/tensor.hpp>

#include "detail/channel_rows.hpp"

namespace mamba::cuda {

// detail::ChannelRows as kernels see them: where row r of a view begins. Sequence operations, which
// know batch row and step of what they touch, take both pitches as they are (ScanTrack,
// conv::Operands): the fast form, that never divides.
struct RowPitches {
  std::int64_t time = 1;  // rows in a run
  std::int64_t batch_pitch = 0;
  std::int64_t time_pitch = 0;
  bool even = true;  // row r begins at r time_pitch

  RowPitches() = default;
  explicit RowPitches(const detail::ChannelRows& rows)
      : time(rows.time),
        batch_pitch(rows.batch_pitch),
        time_pitch(rows.time_pitch),
        even(rows.evenly_pitched()) {}
  explicit RowPitches(const ConstTensorView& view) : RowPitches(detail::ChannelRows(view)) {}
  // Of a view [batch, time], where each element is a row.
  static RowPitches of_elements(const ConstTensorView& view) {
    return RowPitches(detail::ChannelRows(view.dim(0), view.dim(1), view.row_pitch(), 1));
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
