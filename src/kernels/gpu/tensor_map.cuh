// What the copy engine of 9.0 is told of a tensor.
#pragma once

#include <cuda.h>

#include <mamba/tensor_view.hpp>

namespace mamba::cuda {

// Of a bf16 view [batch, time, channels] whose rows begin at multiples of 16 bytes, for boxes of
// `rows` steps by `columns` channels: 64 or 16, which lie in shared memory as in a Panel of twice
// as many bytes. DeviceError where the driver cannot make it.
CUtensorMap tensor_map(const ConstTensorView& view, int columns, int rows, const char* where);

}  // namespace mamba::cuda
