// What smaller GPUs have, for tests that run on a larger one as if it were one of them.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "detail/limits.hpp"
#include "each.hpp"

namespace mamba::testing {

struct LesserDevice {
  const char* name;
  cuda::Limits limits;
};

template <>
struct Every<LesserDevice> {
  static std::vector<LesserDevice> all() {
    constexpr int any = std::numeric_limits<int>::max();
    return {{"Of8_6", {99 << 10, any, 86, true}},
            {"Of8_0", {163 << 10, 108, 80, true}},
            {"Of9_0With99KiB", {99 << 10, any, 90, true}},
            {"WithoutCooperativeLaunch", {any, any, any, false}},
            {"Of16Multiprocessors", {any, 16, any, true}}};
  }
  static std::string name(const LesserDevice& device) { return device.name; }
};

}  // namespace mamba::testing
