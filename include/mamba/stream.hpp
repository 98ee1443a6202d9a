// The order in which work happens, and the memory it borrows meanwhile.
//
// A call that takes a Stream is ordered on it and waits for nothing. A call that takes none waits:
// all that was queued on its device before, on whichever stream, is finished first, and the call is
// done when it returns. So a snapshot, a save or a copy to the host never sees half of what was
// asked for before it. What owns work, a Generator say, has a stream of its own, on which its
// calls are ordered.
#pragma once

#include <memory>

#include <mamba/device.hpp>
#include <mamba/tensor.hpp>

namespace MAMBA_EXPORT mamba {

namespace detail {
class ConstantWeights;
}  // namespace detail

// A sequence of operations on one device. On the CPU an operation is done when its call returns,
// using up to `threads` threads; on CUDA it is queued on a CUDA stream. One stream is used by one
// host thread at a time; different streams may run the same Layer at once.
class Stream {
 public:
  // threads: of the CPU device; 0 takes one per core, and more than 1024 are as 1024. Ignored on
  // CUDA. The threads belong to the process and are lent for the length of a call; DeviceError
  // where the system refuses to start one that is lacking.
  explicit Stream(Device device = Device::cpu(), int threads = 0);
  // Work on the caller's cudaStream_t, which must outlive this object.
  static Stream borrow(Device device, void* cuda_stream);
  ~Stream();
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;

  Device device() const;
  int threads() const;
  void* cuda_stream() const;  // nullptr on the CPU

  // Waits for all work queued so far. Throws once the errors of all operations that found bad
  // values in device memory (a token id or row out of range), as one.
  void synchronize();

 private:
  friend class detail::ConstantWeights;
  friend class Scratch;
  friend struct StreamAccess;  // the kernels' side, src/detail/stream_access.hpp
  friend void synchronize(Device device);
  struct Impl;
  explicit Stream(std::unique_ptr<Impl> impl);
  Impl& impl() const;  // ArgumentError in a Stream that was moved from
  std::unique_ptr<Impl> impl_;
};

// The calling thread's own stream of a device, made on first use and kept until the thread ends.
Stream& default_stream(Device device = Device::cpu());

// Waits for all work that the library's streams have queued on `device`, borrowed ones included; on
// the CPU there is none. Not device-wide: another thread may go on recording a Graph, and of a
// stream that is being recorded only what it queued before counts. Bad values that were found are
// still told by their own stream.
void synchronize(Device device);

// A bump arena on a stream: tensors that live until the scope ends. Memory is kept by the stream,
// at addresses that stay the same for the same sequence of calls, so after the first call nothing
// is allocated and a recorded CUDA graph stays valid. Scopes nest.
class Scratch {
 public:
  explicit Scratch(Stream& stream);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  TensorView take(const Shape& shape, DType dtype);  // uninitialised, 256-byte aligned

 private:
  Stream& stream_;
  std::size_t block_;
  std::size_t offset_;
};

}  // namespace mamba
