// The rows of a state that a batch row stands for (see RowMap).
#pragma once

#include <cstdint>

namespace mamba::cuda {

// Index: in what a kernel counts rows.
template <class Index = std::int64_t>
struct StateRow {
  Index read, write;  // where the state comes from and goes to; negative: zeros, and nowhere
  bool padding;       // neither: y is zeros
  bool bad;           // one of them does not exist: y is NaN, nothing is written
  __device__ bool is_absent() const { return padding || bad; }

  // Of what a row map says; without one, batch row b has row b.
  static __device__ __forceinline__ StateRow of(Index read, Index write, Index state_rows) {
    return {read, write, read < 0 && write < 0, write >= state_rows || read >= state_rows};
  }
};

}  // namespace mamba::cuda
