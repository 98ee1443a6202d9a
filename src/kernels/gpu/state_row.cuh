// The rows of a state that a batch row stands for: without a row map (see RowMap) its own.
#pragma once

#include <cstdint>

namespace mamba::cuda {

// Index: in what a kernel counts rows.
template <class Index = std::int64_t>
struct StateRow {
  Index read, write;  // where the state comes from and goes to; negative: zeros, and nowhere
  bool padding;       // both are negative: y is zeros
  bool bad;           // one of them does not exist: y is NaN, nothing is written
  __device__ bool is_absent() const { return padding || bad; }
};

}  // namespace mamba::cuda
