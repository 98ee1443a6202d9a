// That work takes time in the size of what it is given, and not in its square.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>

namespace mamba::testing {

// Of this thread alone, in seconds: what else the machine does makes no test fail.
inline double processor_time() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

inline double best_of_three(const std::function<void()>& work) {
  double best = HUGE_VAL;
  for (int i = 0; i < 3; ++i) {
    const double start = processor_time();
    work();
    best = std::min(best, processor_time() - start);
  }
  return best;
}

// `make(size)` prepares, and gives what is to be timed. Twenty times the size takes about twenty
// times as long; where every part went through all others it would be four hundred.
inline void expect_linear(const std::function<std::function<void()>(int)>& make) {
  const double few = best_of_three(make(10'000));
  const double many = best_of_three(make(200'000));
  EXPECT_LE(many, 80 * few) << few << " s and " << many << " s";
}

}  // namespace mamba::testing
