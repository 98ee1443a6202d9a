// One rank's end of an NCCL communicator. Nothing here waits for a GPU or, without looking whether
// the group has failed, for another rank.
#pragma once

#include <nccl.h>

#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "detail/meeting.hpp"

namespace mamba::nccl {

// A failed call is a DeviceError with NCCL's own words. Under way is not failed.
void check(ncclResult_t result, ncclComm_t communicator = nullptr);

// Used by its rank's thread; error() and abort() may be called by another at any time.
class Communicator {
 public:
  Communicator(detail::Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}
  ~Communicator() { abort(); }
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // On the calling thread's CUDA device; returns when all ranks are in.
  void join(const ncclUniqueId& id, int count);
  // What `calls` asks for goes to NCCL together; returns when it is queued on its streams.
  void queue(const std::function<void()>& calls);
  // Within queue(). In place: becomes the sum over all ranks, or what rank 0 has.
  void sum(float* data, std::int64_t count, cudaStream_t stream);
  void broadcast(void* data, std::int64_t bytes, cudaStream_t stream);
  // When all that was queued by all ranks is done.
  void close();

  // What went wrong on NCCL's threads or a GPU; empty: nothing.
  std::string error();
  // Ends whatever waits in it, here and on the GPU.
  void abort() noexcept;

 private:
  void wait_until_done();
  void require() const;

  detail::Meeting& meeting_;
  const int rank_;
  std::mutex mutex_;  // around every call: abort() frees what they use
  ncclComm_t communicator_ = nullptr;
  ncclRedOp_t sum_ = ncclSum;
};

}  // namespace mamba::nccl
