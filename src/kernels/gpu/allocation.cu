// Memory of a device, and memory of the host that devices reach by themselves.
#include "kernels/gpu/cuda.cuh"

namespace mamba::cuda {

void* allocate(Device device, std::int64_t bytes) {
  check_present("Tensor", device);
  const OnDevice current(device, "Tensor");
  void* memory = nullptr;
  if (cudaMalloc(&memory, static_cast<std::size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    throw DeviceError("Tensor", "memory", std::to_string(bytes) + " bytes free on " + device.name(),
                      std::to_string(free));
  }
  return memory;
}

void release(Device device, void* memory) noexcept {
  const OnDevice current(device, std::nothrow);
  cudaFree(memory);
}

void* allocate_pinned(std::int64_t bytes) {
  check_present("Tensor::pinned", Device::cuda());
  void* memory = nullptr;
  if (bytes == 0) return memory;
  const OnDevice current("Tensor::pinned");
  if (cudaMallocHost(&memory, static_cast<std::size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    throw DeviceError("Tensor::pinned", "memory",
                      std::to_string(bytes) + " bytes that can be locked in host memory", "fewer");
  }
  return memory;
}

void release_pinned(void* memory) noexcept {
  const OnDevice current(std::nothrow);
  cudaFreeHost(memory);
}

bool is_pinned(Device device, const void* memory) {
  const OnDevice current(device, "synchronize");
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, memory), "synchronize");
  return attributes.type == cudaMemoryTypeHost;
}

}  // namespace mamba::cuda
