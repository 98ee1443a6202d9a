#include <mamba/check.hpp>

#include <fmt/format.h>

#include <algorithm>

#include <mamba/stream.hpp>

namespace mamba::check {

void present(const char* where, const char* name, const ConstTensorView& view) {
  if (!view) throw ArgumentError(where, name, "a tensor", "none");
}

void rank(const char* where, const char* name, const ConstTensorView& view, int expected) {
  present(where, name, view);
  if (view.rank() != expected) {
    throw ArgumentError(where, name, fmt::format("{} dimensions", expected),
                        view.shape().to_string());
  }
}

void shape(const char* where, const char* name, const ConstTensorView& view,
           const Shape& expected) {
  present(where, name, view);
  if (view.shape() != expected) {
    throw ArgumentError(where, name, expected.to_string(), view.shape().to_string());
  }
}

void dtype(const char* where, const char* name, const ConstTensorView& view, DType expected) {
  dtype(where, name, view, {expected});
}

void dtype(const char* where, const char* name, const ConstTensorView& view,
           std::initializer_list<DType> expected) {
  present(where, name, view);
  std::string names;
  for (DType one : expected) {
    if (view.dtype() == one) return;
    names += (names.empty() ? "" : " or ") + std::string(name_of(one));
  }
  throw ArgumentError(where, name, names, name_of(view.dtype()));
}

void device(const char* where, const char* name, const ConstTensorView& view, Device expected) {
  present(where, name, view);
  if (view.device() != expected) {
    throw ArgumentError(where, name, expected.name(), view.device().name());
  }
}

void is(const char* where, const char* name, const ConstTensorView& view, const Shape& expected,
        DType expected_dtype, Device expected_device) {
  shape(where, name, view, expected);
  dtype(where, name, view, expected_dtype);
  device(where, name, view, expected_device);
}

void storage(const char* where, const char* name, const ConstTensorView& view) {
  dtype(where, name, view, {DType::f32, DType::bf16, DType::f16});
}

void storage(const char* where, const char* name, DType dtype) {
  if (dtype == DType::i32) throw ArgumentError(where, name, "f32, bf16 or f16", name_of(dtype));
}

void stream(const char* where, const Stream& stream, Device expected) {
  if (stream.device() == expected) return;
  throw ArgumentError(where, "stream", expected.name(), stream.device().name());
}

namespace {

std::int64_t bytes_of_large(const char* where, const char* name, const Shape& shape, DType dtype) {
  std::int64_t bytes = size_of(dtype);
  bool zero = false;
  bool overflow = false;
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] < 0) throw ArgumentError(where, name, "sizes of at least 0", shape.to_string());
    zero |= shape[i] == 0;
    overflow |= __builtin_mul_overflow(bytes, std::max<std::int64_t>(shape[i], 1), &bytes);
  }
  if (overflow) throw ArgumentError(where, name, "fewer than 2^63 bytes", shape.to_string());
  return zero ? 0 : bytes;
}

}  // namespace

std::int64_t bytes(const char* where, const char* name, const Shape& shape, DType dtype) {
  return shape.is_small() ? shape.count() * size_of(dtype)
                          : bytes_of_large(where, name, shape, dtype);
}

void range(const char* where, const char* name, std::int64_t value, std::int64_t low,
           std::int64_t high) {
  if (value < low || value > high) {
    throw ArgumentError(where, name, fmt::format("{} to {}", low, high), fmt::format("{}", value));
  }
}

}  // namespace mamba::check
