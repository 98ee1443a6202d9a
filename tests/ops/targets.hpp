// Runs a test on every Highway target that this build and this machine have.
#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>

namespace mamba::testing {

// f(name of the target), with run-time dispatch held to that target meanwhile.
template <class F>
void for_each_target(F f) {
  struct Restore {
    ~Restore() { hwy::SetSupportedTargetsForTest(0); }
  } restore;
  const auto targets = hwy::SupportedAndGeneratedTargets();
  for (const auto target : targets) {
    hwy::SetSupportedTargetsForTest(target);
    SCOPED_TRACE(hwy::TargetName(target));
    f(hwy::TargetName(target));
  }
}

}  // namespace mamba::testing
