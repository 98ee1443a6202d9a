// A recorded sequence of CUDA work: queued again with one call, at the price of its kernels alone.
#pragma once

#include <functional>
#include <memory>

#include <mamba/stream.hpp>

namespace MAMBA_EXPORT mamba {

// What was recorded runs again on the same operands, at the same addresses: you may change their
// contents between replays, never their addresses. Every call that is recorded must have been made
// once before, so that nothing is allocated while recording (see Scratch). Tensors and the recorded
// stream must outlive the graph.
class Graph {
 public:
  // Records what `work` queues on `stream` (CUDA; on the CPU an ArgumentError), without running it.
  // An exception from `work` ends the recording and is passed on.
  static Graph record(Stream& stream, const std::function<void(Stream&)>& work);

  // Queues it all on the stream that it was recorded on, whose scratch memory it works in.
  void replay() const;

 private:
  Graph(const Stream& stream, std::shared_ptr<void> graph);
  Device device_;
  void* cuda_stream_;
  std::shared_ptr<void> graph_;
};

}  // namespace mamba
