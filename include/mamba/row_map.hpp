// A batch that continues from rows of a larger state.
#pragma once

#include <mamba/tensor_view.hpp>

namespace MAMBA_EXPORT mamba {

// Which rows of a larger state the batch rows of a call stand for. Batch row b continues from state
// row read[b] and leaves its final state in row write[b]; read[b] < 0 starts from zero, write[b] <
// 0 drops the final state, and both < 0 marks padding, whose y is zeros in an operation and in a
// layer (a stack's is the final norm of its input). Absent, row b is state row b. A state row
// written by one batch row may not be read or written by another of the same call.
struct RowMap {
  ConstTensorView read;   // [batch] i32, optional
  ConstTensorView write;  // [batch] i32, optional; both or neither
};

}  // namespace mamba
