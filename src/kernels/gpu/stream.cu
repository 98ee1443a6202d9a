// A stream of a device: made, waited for and ended.
#include "kernels/gpu/cuda.cuh"

namespace mamba::cuda {

void* make_stream(Device device) {
  check_present("Stream", device);
  const OnDevice current(device, "Stream");
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "Stream");
  return stream;
}

void end_stream(Device device, void* cuda_stream, bool owned) noexcept {
  const OnDevice current(device, std::nothrow);
  const auto stream = static_cast<cudaStream_t>(cuda_stream);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
      status == cudaStreamCaptureStatusNone) {
    cudaStreamSynchronize(stream);  // would end a recording with an error
  }
  if (owned) cudaStreamDestroy(stream);
  cudaGetLastError();
}

void synchronize(Device device, void* cuda_stream) {
  const OnDevice current(device, "Stream::synchronize");
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(cuda_stream)), "Stream::synchronize");
}

bool is_recorded(Device device, void* cuda_stream) {
  const OnDevice current(device, "synchronize");
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(cuda_stream), &status), "synchronize");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace mamba::cuda
