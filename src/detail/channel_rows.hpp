// A view of rank 1 to 3 as rows of channels. A slice of [batch, time, channels] has two pitches, so
// its rows need not be one pitch apart; where they are, batch and time merge into one row
// dimension.
#pragma once

#include <cstdint>

#include <mamba/tensor.hpp>

namespace mamba::detail {

struct ChannelRows {
  std::int64_t batch = 1;  // runs of rows
  std::int64_t time = 1;   // rows in a run
  std::int64_t batch_pitch = 0;
  std::int64_t time_pitch = 0;

  ChannelRows() = default;
  ChannelRows(std::int64_t runs, std::int64_t rows, std::int64_t run_pitch, std::int64_t row_pitch)
      : batch(runs), time(rows), batch_pitch(run_pitch), time_pitch(row_pitch) {
    if (batch == 1 || time == 1 || batch_pitch == time * time_pitch) {
      if (time == 1) time_pitch = batch_pitch;
      time *= batch;
      batch = 1;
    }
  }
  explicit ChannelRows(const ConstTensorView& view) {
    if (view.rank() == 2) *this = ChannelRows(1, view.dim(0), 0, view.row_pitch());
    if (view.rank() == 3) {
      *this = ChannelRows(view.dim(0), view.dim(1), view.row_pitch(), view.step_pitch());
    }
  }

  // Whether row r begins at r time_pitch.
  bool evenly_pitched() const { return batch == 1; }

  std::int64_t count() const { return batch * time; }
  // Where row r begins, in elements.
  std::int64_t offset(std::int64_t r) const {
    if (evenly_pitched()) return r * time_pitch;  // without the divisions
    return (r / time) * batch_pitch + (r % time) * time_pitch;
  }
};

}  // namespace mamba::detail
