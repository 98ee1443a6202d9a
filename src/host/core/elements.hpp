// The element types that files may hold, by their safetensors names, and conversion between them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <mamba/dtype.hpp>

namespace mamba::elements {

// Bits of one element: 32 of "F32", 4 of "F4". 0 for a name that is not known.
std::int64_t bits_of(std::string_view dtype);

// Bytes of one element of at least 8 bits, else 0.
std::int64_t size_of(std::string_view dtype);

// For messages: the name, with what it is in words where the name alone does not say it.
std::string spoken(std::string_view dtype);

// f32 is "F32", and so on.
const char* file_name_of(DType dtype);

// Among F64, F32, BF16 and F16, and between I64 and I32.
bool convertible(std::string_view from, std::string_view to);

// Converts `count` elements of convertible types, which may lie at any address. Floating-point
// values are rounded once, to nearest even. Returns the first I64 that does not fit into an I32, if
// there is one; then only what was before it is converted.
std::optional<std::int64_t> convert(std::string_view from, std::string_view to, const void* source,
                                    void* target, std::int64_t count);

}  // namespace mamba::elements
