// Checked operands go to the stream's device.
#pragma once

#include "detail/backend.hpp"

namespace mamba {

template <class Op>
void dispatch(const Op& op, Stream& stream) {
  if (stream.device().is_cuda()) {
    cuda::run(op, stream);
  } else {
    host::run(op, stream);
  }
}

}  // namespace mamba
