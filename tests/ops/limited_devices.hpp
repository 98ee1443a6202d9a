// What smaller GPUs have, for tests that run on a larger one as if it were one of them.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <ostream>
#include <vector>

#include "detail/limits.hpp"
#include "testing.hpp"

namespace mamba::testing {

struct LesserDevice {
  const char* name;
  cuda::Limits limits;
};
inline void PrintTo(const LesserDevice& device, std::ostream* to) { *to << device.name; }

inline std::vector<LesserDevice> lesser_devices() {
  constexpr int any = std::numeric_limits<int>::max();
  return {{"Of8_6", {99 << 10, any, 86, true}},
          {"Of8_0", {163 << 10, 108, 80, true}},
          {"Of9_0With99KiB", {99 << 10, any, 90, true}},
          {"WithoutCooperativeLaunch", {any, any, any, false}},
          {"Of16Multiprocessors", {any, 16, any, true}}};
}

// f(device), on each CUDA device, which has no more than the test's parameter.
class OnLesserDevices : public ::testing::TestWithParam<LesserDevice> {
 protected:
  template <class F>
  void each_device(F f) const {
    each_cuda_device([&](Device device) {
      const cuda::LimitedDevices limited(GetParam().limits);
      SCOPED_TRACE(device.name() + " " + GetParam().name);
      f(device);
    });
  }
};

inline std::string name_of_lesser(const ::testing::TestParamInfo<LesserDevice>& info) {
  return info.param.name;
}

}  // namespace mamba::testing
