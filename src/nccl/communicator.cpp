#include "nccl/communicator.hpp"

#include <chrono>
#include <thread>
#include <utility>

#include <mamba/error.hpp>

namespace mamba::nccl {

namespace {

constexpr const char* where = "DataParallel";

std::string words(ncclResult_t result, ncclComm_t communicator) {
  const char* more = communicator != nullptr ? ncclGetLastError(communicator) : nullptr;
  const std::string text = ncclGetErrorString(result);
  return more == nullptr || *more == '\0' ? text : text + " (" + more + ")";
}

bool failed(ncclResult_t result) { return result != ncclSuccess && result != ncclInProgress; }

}  // namespace

void check(ncclResult_t result, ncclComm_t communicator) {
  if (failed(result)) throw DeviceError(where, "NCCL", "success", words(result, communicator));
}

void Communicator::require() const {
  meeting_.check(rank_);
  if (communicator_ == nullptr) throw DeviceError(where, "NCCL", "a communicator", "none");
}

// NCCL works on threads of its own. They have done what was asked when the state is no longer "in
// progress"; until then nothing else may be queued.
void Communicator::wait_until_done() {
  for (int turn = 0;; ++turn) {
    ncclResult_t state = ncclSuccess;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      require();
      check(ncclCommGetAsyncError(communicator_, &state), communicator_);
      check(state, communicator_);
    }
    if (state == ncclSuccess) return;
    // Queueing takes some ten microseconds, joining a second.
    if (turn < 1000) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
}

void Communicator::join(const ncclUniqueId& id, int count) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    meeting_.check(rank_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    check(ncclCommInitRankConfig(&communicator_, count, id, rank_, &config));
  }
  wait_until_done();
  const std::lock_guard<std::mutex> lock(mutex_);
  require();
  // NVLink switches can add, but in the order in which values arrive: not the same bits from run to
  // run. They know no sum with a factor, so a factor of 1 keeps the sum on the GPUs, where its
  // order is fixed.
  float one = 1;
  check(ncclRedOpCreatePreMulSum(&sum_, &one, ncclFloat32, ncclScalarHostImmediate, communicator_),
        communicator_);
}

void Communicator::queue(const std::function<void()>& calls) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    require();
    check(ncclGroupStart(), communicator_);
    try {
      calls();
    } catch (...) {
      ncclGroupEnd();  // a group that is left open would swallow the thread's next calls
      throw;
    }
    check(ncclGroupEnd(), communicator_);
  }
  wait_until_done();
}

void Communicator::sum(float* data, std::int64_t count, cudaStream_t stream) {
  check(ncclAllReduce(data, data, static_cast<std::size_t>(count), ncclFloat32, sum_, communicator_,
                      stream),
        communicator_);
}

void Communicator::broadcast(void* data, std::int64_t bytes, cudaStream_t stream) {
  check(ncclBroadcast(data, data, static_cast<std::size_t>(bytes), ncclInt8, 0, communicator_,
                      stream),
        communicator_);
}

void Communicator::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    require();
    check(ncclRedOpDestroy(sum_, communicator_), communicator_);
    check(ncclCommFinalize(communicator_), communicator_);
  }
  wait_until_done();
  const std::lock_guard<std::mutex> lock(mutex_);
  require();
  check(ncclCommDestroy(std::exchange(communicator_, nullptr)));
}

std::string Communicator::error() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (communicator_ == nullptr) return "";
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = ncclCommGetAsyncError(communicator_, &state);
  if (failed(result)) return words(result, communicator_);
  return failed(state) ? words(state, communicator_) : "";
}

void Communicator::abort() noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (communicator_ != nullptr) ncclCommAbort(std::exchange(communicator_, nullptr));
}

}  // namespace mamba::nccl
