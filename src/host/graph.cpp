#include <mamba/graph.hpp>

#include "detail/backend.hpp"

namespace mamba {

Graph Graph::record(Stream& stream, const std::function<void(Stream&)>& work) {
  const Device device = stream.device();
  if (device.is_cpu()) {
    throw ArgumentError("Graph::record", "stream", "a CUDA stream", device.name());
  }
  cuda::begin_recording(stream);
  try {
    work(stream);
  } catch (...) {
    cuda::abandon_recording(stream);
    throw;
  }
  void* graph = cuda::end_recording(stream);
  return Graph(device, std::shared_ptr<void>(graph, [device](void* recorded) {
                 cuda::release_recording(device, recorded);
               }));
}

void Graph::replay(Stream& stream) const {
  if (!graph_) throw ArgumentError("Graph::replay", "graph", "a graph", "one that was moved from");
  if (stream.device() != device_) {
    throw ArgumentError("Graph::replay", "stream", device_.name(), stream.device().name());
  }
  cuda::replay(graph_.get(), stream);
}

}  // namespace mamba
