// Checks of operands, each an ArgumentError "where: name: expected ..., got ...".
#pragma once

#include <initializer_list>

#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {
namespace check {

void present(const char* where, const char* name, const ConstTensorView& view);
void rank(const char* where, const char* name, const ConstTensorView& view, int rank);
void shape(const char* where, const char* name, const ConstTensorView& view, const Shape& expected);
void dtype(const char* where, const char* name, const ConstTensorView& view, DType expected);
void dtype(const char* where, const char* name, const ConstTensorView& view,
           std::initializer_list<DType> expected);
void device(const char* where, const char* name, const ConstTensorView& view, Device expected);

// shape, dtype and device together.
void is(const char* where, const char* name, const ConstTensorView& view, const Shape& shape,
        DType dtype, Device device);

// The dtypes that activations and weights are stored in: f32, bf16, f16.
void storage(const char* where, const char* name, const ConstTensorView& view);
void storage(const char* where, const char* name, DType dtype);

// The stream is one of the device.
void stream(const char* where, const Stream& stream, Device expected);

// The bytes of a dense tensor of this shape. A negative size, or 2^63 bytes and more, is an error.
std::int64_t bytes(const char* where, const char* name, const Shape& shape, DType dtype);

// low <= value <= high.
void range(const char* where, const char* name, std::int64_t value, std::int64_t low,
           std::int64_t high);

}  // namespace check
}  // namespace mamba
