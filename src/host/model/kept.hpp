// Tensors that a tape keeps from run to run.
#pragma once

#include <mamba/tensor.hpp>

namespace mamba {

// Memory that is already right is kept.
inline TensorView shaped(Tensor& tensor, const Shape& shape, DType dtype, Device device) {
  if (tensor.shape() != shape || tensor.dtype() != dtype || tensor.device() != device) {
    tensor = Tensor(shape, dtype, device);
  }
  return tensor;
}

}  // namespace mamba
