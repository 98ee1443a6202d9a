// Recording a stream's work in a CUDA graph, and queueing it again.
#include "kernels/gpu/cuda.cuh"

namespace mamba::cuda {

void begin_recording(Stream& stream) {
  const OnDevice current(stream.device(), "Graph::record");
  // Thread-local: another thread may allocate or copy meanwhile without spoiling the recording.
  check(cudaStreamBeginCapture(handle(stream), cudaStreamCaptureModeThreadLocal), "Graph::record");
}

void abandon_recording(Stream& stream) noexcept {
  const OnDevice current(stream.device(), std::nothrow);
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(handle(stream), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void* end_recording(Stream& stream) {
  const OnDevice current(stream.device(), "Graph::record");
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(handle(stream), &graph), "Graph::record");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "Graph::record");
  return executable;
}

void release_recording(Device device, void* graph) noexcept {
  const OnDevice current(device, std::nothrow);
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

void replay(void* graph, Device device, void* cuda_stream) {
  const OnDevice current(device, "Graph::replay");
  check(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(cuda_stream)),
      "Graph::replay");
}

}  // namespace mamba::cuda
