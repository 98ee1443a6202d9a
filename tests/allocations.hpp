// Counts every allocation of the test program, so that a test can say that there was none.
#pragma once

namespace mamba::testing {

bool allocations_are_counted();  // false under a sanitizer, which owns malloc itself
long allocations();              // by all threads so far

}  // namespace mamba::testing
