// Calls that take no stream: they begin after all that was queued, and are done when they return.
#pragma once

#include <type_traits>
#include <utility>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

#include "detail/stream_access.hpp"

namespace mamba {

// work(stream) on the thread's own stream of `device`, and what it returns.
template <class Work>
auto finished(Device device, const Work& work) {
  synchronize(device);
  Stream& stream = default_stream(device);
  if constexpr (std::is_void_v<decltype(work(stream))>) {
    work(stream);
    stream.synchronize();
  } else {
    auto result = work(stream);
    stream.synchronize();
    return result;
  }
}

// The same for a move from one device to another, on a stream of the one that is a GPU.
template <class Work>
auto finished_move(Device from, Device to, const Work& work) {
  if (from != to) synchronize(from);
  return finished(to.is_cuda() ? to : from, work);
}

// A dense copy in host memory. What was queued on `stream` is waited for, or on any.
inline Tensor on_host(const ConstTensorView& view, Stream& stream) {
  Tensor host(view.shape(), view.dtype());
  copy(view, host, stream);
  stream.synchronize();
  return host;
}
inline Tensor on_host(const ConstTensorView& view) {
  StreamAccess::wait_for(view);
  return on_host(view, default_stream(view.device()));
}

}  // namespace mamba
