// A Matmul's operands as our own kernels take them.
#pragma once

#include "detail/channel_rows.hpp"
#include "kernels/vec.cuh"

namespace mamba::cuda {

// Where row r of a view of rank 1 to 3 begins.
struct RowOffsets {
  std::int64_t time;
  std::int64_t batch_pitch;
  std::int64_t time_pitch;

  explicit RowOffsets(const detail::ChannelRows& rows)
      : time(rows.time), batch_pitch(rows.batch_pitch), time_pitch(rows.time_pitch) {}
  __device__ std::int64_t operator()(std::int64_t r) const {
    return r < time ? r * time_pitch : r / time * batch_pitch + r % time * time_pitch;
  }
};

template <class T>
struct MatmulOperands {
  const T* x;
  const T* weight;
  const T* bias;  // or nullptr
  void* y;
  RowOffsets x_row;
  RowOffsets y_row;
  std::int64_t weight_pitch;
  std::int64_t rows;
  std::int64_t in;
  std::int64_t out;
  bool y_is_f32;

  explicit MatmulOperands(const Matmul& op)
      : x(static_cast<const T*>(op.x.data())),
        weight(static_cast<const T*>(op.weight.data())),
        bias(op.bias ? static_cast<const T*>(op.bias.data()) : nullptr),
        y(op.y.data()),
        x_row(detail::ChannelRows(op.x)),
        y_row(detail::ChannelRows(op.y)),
        weight_pitch(op.weight.row_pitch()),
        rows(detail::ChannelRows(op.x).count()),
        in(op.weight.dim(1)),
        out(op.weight.dim(0)),
        y_is_f32(op.y.dtype() == DType::f32) {}

  // y[row, column] = sum + bias, rounded once.
  __device__ void finish(std::int64_t row, std::int64_t column, float sum) const {
    if (bias != nullptr) sum += to_float(bias[column]);
    const std::int64_t at = y_row(row) + column;
    if (y_is_f32) {
      static_cast<float*>(y)[at] = sum;
    } else {
      static_cast<T*>(y)[at] = from_float<T>(sum);
    }
  }
};

}  // namespace mamba::cuda
