// The version of this library; CMake reads it from here.
#pragma once

namespace mamba {

inline constexpr const char* version = "0.1.0";

}  // namespace mamba
