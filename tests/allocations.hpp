// Counts every allocation of the test program, so that a test can say that there was none.
#pragma once

namespace mamba::testing {

bool allocations_are_counted();  // false under a sanitizer, which owns malloc itself
long allocations();              // by all threads so far
long allocations_here();         // by this thread: CUDA's own threads allocate when they like

}  // namespace mamba::testing
