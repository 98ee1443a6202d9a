#include "memory.hpp"

#include "../host_memory.hpp"
#include "cuda.hpp"

namespace mamba_rl {

std::int64_t memory_of(mamba::Device device) {
  if (device.is_cuda()) return cuda::memory_of(device);
  return host_memory();
}

}  // namespace mamba_rl
