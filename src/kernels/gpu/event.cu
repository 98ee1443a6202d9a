// A point in a stream's work that the host can wait for while later work goes on.
#include "kernels/gpu/cuda.cuh"

namespace mamba::cuda {

void* make_event(Device device) {
  const OnDevice current(device, "Event");
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "Event");
  return event;
}

void destroy_event(Device device, void* event) noexcept {
  const OnDevice current(device, std::nothrow);
  cudaEventDestroy(static_cast<cudaEvent_t>(event));
}

void record_event(void* event, Device device, void* cuda_stream) {
  const OnDevice current(device, "Event");
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(cuda_stream)),
        "Event");
}

void wait_event(void* event) {
  const OnDevice current("Event");
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "Event");
}

}  // namespace mamba::cuda
