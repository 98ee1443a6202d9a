// A Matmul's operands as our own kernels take them.
#pragma once

#include <mamba/ops.hpp>

#include "detail/channel_rows.hpp"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"
#include "kernels/matmul/weight_load.cuh"

namespace mamba::cuda {

// Whether every row that a kernel reads begins and ends on a multiple of 16 bytes.
inline bool rows_are_aligned(const ConstTensorView& view) {
  const detail::ChannelRows rows(view);
  const std::int64_t size = size_of(view.dtype());
  return is_aligned(view.data(), rows.time_pitch * size, 16) &&
         is_aligned(view.data(), rows.batch_pitch * size, 16) &&
         view.shape().back() * size % 16 == 0;
}

template <class Load>
struct MatmulOperands {
  using T = typename Load::T;

  const T* x;
  Load weight;
  const T* bias;  // or nullptr
  void* y;
  RowPitches x_rows;
  RowPitches weight_rows;
  RowPitches y_rows;
  std::int64_t weight_pitch;
  std::int64_t rows;  // of y
  std::int64_t in;    // summed
  std::int64_t out;
  bool y_is_f32;
  bool transpose_weight, transpose_x;
  bool accumulate;

  explicit MatmulOperands(const Matmul& op)
      : x(static_cast<const T*>(op.x.data())),
        weight(op.weight),
        bias(op.bias ? static_cast<const T*>(op.bias.data()) : nullptr),
        y(op.y.data()),
        x_rows(op.x),
        weight_rows(op.weight),
        y_rows(op.y),
        weight_pitch(op.weight.row_pitch()),
        rows(detail::ChannelRows(op.y).count()),
        in(op.transpose_x ? detail::ChannelRows(op.x).count() : op.x.shape().back()),
        out(op.y.shape().back()),
        y_is_f32(op.y.dtype() == DType::f32),
        transpose_weight(op.transpose_weight),
        transpose_x(op.transpose_x),
        accumulate(op.accumulate) {}

  // Element i of the sum that row `row` of y, or column `column`, takes part in.
  __device__ float x_at(std::int64_t row, std::int64_t i) const {
    return to_float(x[transpose_x ? x_rows.offset(i) + row : x_rows.offset(row) + i]);
  }
  __device__ float weight_at(std::int64_t column, std::int64_t i) const {
    return Load::value(weight.data[transpose_weight ? weight_rows.offset(i) + column
                                                    : weight_rows.offset(column) + i]);
  }

  __device__ float with_bias(std::int64_t column, float sum) const {
    sum = weight.scaled(column, sum);
    return bias != nullptr ? sum + to_float(bias[column]) : sum;
  }
  // y[row, column] = sum + bias, with what was there if it accumulates, rounded once.
  __device__ void finish(std::int64_t row, std::int64_t column, float sum) const {
    sum = with_bias(column, sum);
    const std::int64_t at = y_rows.offset(row) + column;
    if (y_is_f32) {
      float* to = static_cast<float*>(y) + at;
      *to = accumulate ? *to + sum : sum;
    } else {
      T* to = static_cast<T*>(y) + at;
      *to = from_float<T>(accumulate ? to_float(*to) + sum : sum);
    }
  }
};

}  // namespace mamba::cuda
