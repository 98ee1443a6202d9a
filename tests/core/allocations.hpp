// Counts every allocation of the test program, so that a test can say that there was none, and
// makes one of them fail.
#pragma once

#include <algorithm>

namespace mamba::testing {

bool allocations_are_counted();  // false under a sanitizer, which owns malloc itself
long allocations();              // by all threads so far
long allocations_here();         // by this thread

// Allocations of a call that may use other threads. CUDA's own threads allocate when they like, so
// of what all threads together did the least of three calls counts; of what this one did, the most.
template <class Call>
long allocations_of(const Call& call) {
  long by_all = 0, here = 0;
  for (int i = 0; i < 3; ++i) {
    const long all_before = allocations(), here_before = allocations_here();
    call();
    const long all = allocations() - all_before;
    by_all = i == 0 ? all : std::min(by_all, all);
    here = std::max(here, allocations_here() - here_before);
  }
  return std::max(by_all, here);
}

// While it lives, the n-th operator new of all threads from its making on throws std::bad_alloc.
class FailingAllocation {
 public:
  explicit FailingAllocation(long n);
  ~FailingAllocation();
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;
  bool failed() const;  // whether there were n
};

}  // namespace mamba::testing
