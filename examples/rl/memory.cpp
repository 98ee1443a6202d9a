#include "memory.hpp"

#include <unistd.h>

#include "cuda.hpp"

namespace mamba_rl {

std::int64_t memory_of(mamba::Device device) {
  if (device.is_cuda()) return cuda::memory_of(device);
  return std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
}

}  // namespace mamba_rl
