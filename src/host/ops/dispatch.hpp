// Checked operands go to the stream's device.
#pragma once

#include "detail/backend.hpp"
#include "detail/profiler_range.hpp"

namespace mamba {

#define MAMBA_OPERATION(Operation, name) \
  constexpr const char* name_of(const Operation&) { return name; }
#include "detail/operations.inc"

template <class Op>
void dispatch(const Op& op, Stream& stream) {
  const detail::ProfilerRange range(name_of(op));
  if (stream.device().is_cuda()) {
    cuda::run(op, stream);
  } else {
    host::run(op, stream);
  }
}

}  // namespace mamba
