// Where the threads of a group wait for each other, and for nobody who has failed or left.
#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>

#include <mamba/error.hpp>

namespace mamba::detail {

class Meeting {
 public:
  explicit Meeting(int count) : count_(count) {}
  int count() const { return count_; }

  // Waits until all are here; what any of them wrote before is seen by all afterwards. If one has
  // failed, or has returned and will never come, that is a DeviceError for everyone who waits.
  void meet(int rank) {
    std::unique_lock<std::mutex> lock(mutex_);
    throw_if_failed(rank);
    const long meeting = met_;
    if (left_ == 0 && ++here_ == count_) {
      here_ = 0;
      ++met_;
      changed_.notify_all();
      return;
    }
    changed_.wait(lock, [&] { return met_ != meeting || first_ || left_ > 0; });
    if (met_ != meeting) return;
    throw_if_failed(rank);
    throw DeviceError(where, name(rank), "all ranks to meet",
                      name(last_left_) + ", which has returned");
  }

  // For waits elsewhere: throws as meet() does if a thread has failed.
  void check(int rank) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    throw_if_failed(rank);
  }

  // The first failure is kept; what follows from it is not.
  void fail(int rank, std::exception_ptr error, const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (first_) return;
    first_ = std::move(error);
    cause_ = rank < 0 ? what : "the failure of " + name(rank) + ": " + what;
    changed_.notify_all();
  }
  std::exception_ptr failure() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return first_;
  }

  // The last thing that a thread does, whether it has failed or not.
  void leave(int rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++left_;
    last_left_ = rank;
    changed_.notify_all();
  }
  // Waits for so long at most; true: all have left.
  bool all_left(std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, time, [&] { return left_ == count_; });
  }

 private:
  static constexpr const char* where = "DataParallel";
  static std::string name(int rank) { return "rank " + std::to_string(rank); }
  void throw_if_failed(int rank) const {
    if (first_) throw DeviceError(where, name(rank), "all ranks at work", cause_);
  }

  const int count_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int here_ = 0;
  long met_ = 0;
  int left_ = 0;
  int last_left_ = 0;
  std::exception_ptr first_;
  std::string cause_;
};

}  // namespace mamba::detail
