// One factor of a product, as it is stored.
#pragma once

#include <mamba/dtype.hpp>

#include "detail/channel_rows.hpp"

namespace mamba::host {

// Element (i, k) of the factor stands in row i and column k of its operand, or the other way round
// where it is transposed. Which number that is, factor-inl.h alone knows.
struct Factor {
  const void* data;
  DType dtype;
  detail::ChannelRows rows;
  bool transposed;

  Factor(const ConstTensorView& operand, bool is_transposed)
      : data(operand.data()), dtype(operand.dtype()), rows(operand), transposed(is_transposed) {}

  // Where a row of the operand begins.
  const char* row(std::int64_t i) const {
    return static_cast<const char*>(data) + rows.offset(i) * size_of(dtype);
  }
};

}  // namespace mamba::host
