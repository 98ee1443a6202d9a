// The version of this library; CMake reads it from here.
#pragma once

#include <mamba/export.hpp>

namespace MAMBA_EXPORT mamba {

inline constexpr const char* version = "0.1.0";

}  // namespace mamba
