#include <mamba/graph.hpp>

#include "detail/backend.hpp"
#include "detail/stream_access.hpp"

namespace mamba {

Graph::Graph(const Stream& stream, std::shared_ptr<void> graph)
    : device_(stream.device()), cuda_stream_(stream.cuda_stream()), graph_(std::move(graph)) {}

Graph Graph::record(Stream& stream, const std::function<void(Stream&)>& work) {
  const Device device = stream.device();
  if (device.is_cpu()) {
    throw ArgumentError("Graph::record", "stream", "a CUDA stream", device.name());
  }
  const StreamAccess::Recording recording(stream);
  try {
    work(stream);
  } catch (...) {
    cuda::abandon_recording(stream);
    throw;
  }
  const std::shared_ptr<void> graph(cuda::end_recording(stream), [device](void* recorded) {
    cuda::release_recording(device, recorded);
  });
  return Graph(stream, graph);
}

void Graph::replay() const {
  if (!graph_) throw ArgumentError("Graph::replay", "graph", "a graph", "one that was moved from");
  cuda::replay(graph_.get(), device_, cuda_stream_);
}

}  // namespace mamba
