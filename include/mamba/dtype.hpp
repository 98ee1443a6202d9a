// The element types of tensors, and the two 16-bit floats as plain C++ values.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <mamba/error.hpp>

namespace MAMBA_EXPORT mamba {

enum class DType : std::uint8_t { f32, bf16, f16, i32 };

constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::f32 || dtype == DType::i32 ? 4 : 2;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::f16:
      return "f16";
    case DType::i32:
      return "i32";
  }
  return "unknown";
}

// "f32", "bf16" or "f16"; anything else is an ArgumentError.
inline DType parse_storage_dtype(std::string_view text) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (text == name_of(dtype)) return dtype;
  }
  throw ArgumentError("parse_storage_dtype", "dtype", "f32, bf16 or f16",
                      "\"" + std::string(text) + "\"");
}

// bfloat16: the upper half of a float, rounded to nearest even. A NaN stays a (quiet) NaN.
struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  explicit bf16(float value) {
    std::uint32_t u;
    std::memcpy(&u, &value, 4);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>(nan ? (u >> 16) | 0x40u
                                          : (u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const {
    const std::uint32_t u = static_cast<std::uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, 4);
    return value;
  }
};

// IEEE binary16, rounded to nearest even; too large becomes infinity, subnormals are kept.
struct f16 {
  std::uint16_t bits;

  f16() = default;
  explicit f16(float value) {
    std::uint32_t u;
    std::memcpy(&u, &value, 4);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    std::uint32_t half;
    if (u > 0x7f800000u) {  // NaN
      half = 0x7e00u | ((u >> 13) & 0x1ffu);
    } else if (u >= 0x477ff000u) {  // rounds to at least 2^16
      half = 0x7c00u;
    } else if (u < 0x38800000u) {  // below 2^-14: adding 0.5 aligns and rounds the subnormal
      float magnitude;
      std::memcpy(&magnitude, &u, 4);
      magnitude += 0.5f;
      std::memcpy(&half, &magnitude, 4);
      half -= 0x3f000000u;
    } else {
      half = (u + 0xfffu + ((u >> 13) & 1u) - 0x38000000u) >> 13;
    }
    bits = static_cast<std::uint16_t>(sign | half);
  }
  explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t rest = bits & 0x7fffu;
    float value;
    if (rest < 0x400u) {  // zero or subnormal: an integer count of 2^-24
      value = static_cast<float>(rest) * 0x1p-24f;
    } else {
      const std::uint32_t u =
          rest >= 0x7c00u ? 0x7f800000u | (rest & 0x3ffu) << 13 : (rest << 13) + 0x38000000u;
      std::memcpy(&value, &u, 4);
    }
    std::uint32_t u;
    std::memcpy(&u, &value, 4);
    u |= sign;
    std::memcpy(&value, &u, 4);
    return value;
  }
};

// dtype_of<float>() == DType::f32, and so on.
template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<f16>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<std::int32_t>() {
  return DType::i32;
}

}  // namespace mamba
