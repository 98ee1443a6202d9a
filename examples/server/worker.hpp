// Work beside the model's: files, copies of states, sums over them. A thread that does one piece
// after the other, so that neither the model nor the sockets wait for a disk.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace server {

using Work = std::function<void()>;  // must not throw
using Executor = std::function<void(Work)>;

class Worker {
 public:
  Worker();
  ~Worker();  // after all that was asked for
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  void run(Work work);  // later, on the thread

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Work> queue_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace server
