#include "allocations.hpp"

#include <atomic>
#include <cstddef>

#if defined(__has_feature)
#define MAMBA_HAS_FEATURE(feature) __has_feature(feature)
#else
#define MAMBA_HAS_FEATURE(feature) 0
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !MAMBA_HAS_FEATURE(address_sanitizer) && !MAMBA_HAS_FEATURE(thread_sanitizer)
#define MAMBA_COUNTS_ALLOCATIONS 1
#else
#define MAMBA_COUNTS_ALLOCATIONS 0
#endif

namespace {
std::atomic<long> count{0};
thread_local long here = 0;

#if MAMBA_COUNTS_ALLOCATIONS
void add_one() {
  ++count;
  ++here;
}
#endif
}  // namespace

namespace mamba::testing {
bool allocations_are_counted() { return MAMBA_COUNTS_ALLOCATIONS != 0; }
long allocations() { return count; }
long allocations_here() { return here; }
}  // namespace mamba::testing

// operator new and every library end in these; glibc's own stand behind them.
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t number, std::size_t size);
void* __libc_realloc(void* memory, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);

#if MAMBA_COUNTS_ALLOCATIONS
void* malloc(std::size_t size) {
  add_one();
  return __libc_malloc(size);
}
void* calloc(std::size_t number, std::size_t size) {
  add_one();
  return __libc_calloc(number, size);
}
void* realloc(void* memory, std::size_t size) {
  add_one();
  return __libc_realloc(memory, size);
}
void* aligned_alloc(std::size_t alignment, std::size_t size) {
  add_one();
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) {
  add_one();
  *memory = __libc_memalign(alignment, size);
  return *memory == nullptr ? 12 /* ENOMEM */ : 0;
}
#endif
}
