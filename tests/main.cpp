// The main of the test programs: GoogleTest's, with the tests of TEST_EACH. Where
// MAMBA_REQUIRE_CUDA=1 is in the environment, a machine without a CUDA device is a failure and not
// a silent skip.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "each.hpp"

namespace mamba::testing {
namespace {

std::vector<std::function<void()>>& waiting() {
  static std::vector<std::function<void()>> list;
  return list;
}

}  // namespace

void once_main_has_begun(std::function<void()> make_tests) {
  waiting().push_back(std::move(make_tests));
}

}  // namespace mamba::testing

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const char* required = std::getenv("MAMBA_REQUIRE_CUDA");
  if (required != nullptr && std::string(required) == "1" && mamba::cuda_device_count() == 0 &&
      !GTEST_FLAG_GET(list_tests)) {
    std::cerr << "MAMBA_REQUIRE_CUDA=1, but there is no CUDA device\n";
    return 1;
  }
  for (const auto& make_tests : mamba::testing::waiting()) make_tests();
  return RUN_ALL_TESTS();
}
