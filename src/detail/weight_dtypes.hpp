// Which weights products read.
#pragma once

#include <mamba/dtype.hpp>

namespace mamba::detail {

// Whether a product of activations in `x` reads a weight in `weight`, which is not transposed. Each
// device has a loader for what is said here: host/ops/matmul/factor-inl.h and
// kernels/matmul/weight_load.cuh.
constexpr bool reads_weight(DType x, DType weight) { return weight == x; }

}  // namespace mamba::detail
