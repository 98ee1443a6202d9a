// The threads of a CPU stream.
//
// Not OpenMP, because of what happens when the machine has other work: GCC's runtime spins for
// whole time slices while the thread it waits for has no core. Measured with one core of two taken
// by a compiler: a decode step of a 130m model took 20 to 780 ms; with this team it takes 22 to 24,
// alone 17 (f32, 2 threads). Here whoever is running takes the next part, nobody waits for a thread
// that has not begun, and spinning ends after a tenth of a millisecond.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mamba::detail {

class Team {
 public:
  // The caller is one of the `threads`; the others start with the first run() that needs them.
  explicit Team(int threads) : size_(threads) {}
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // f(i) once for each i in [0, parts), on the caller and the others, in any order; returns when
  // all are done. f must not throw. One run() at a time.
  template <class F>
  void run(int parts, const F& f) {
    if (parts == 1 || size_ == 1) {
      for (int i = 0; i < parts; ++i) f(i);
      return;
    }
    const auto call = [](const void* context, int part) {
      (*static_cast<const F*>(context))(part);
    };
    run_parts(parts, call, &f);
  }

 private:
  using Call = void (*)(const void* context, int part);
  void run_parts(int parts, Call call, const void* context);
  bool take_part(std::uint32_t& job, int& part);
  void finish_part();
  void work();

  int size_;
  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  const void* context_ = nullptr;
  // The job's number (32 bits), its parts (16) and the next part nobody has taken (16), in one
  // word, so that a thread that comes late can never take a part of another job than it looked at.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<int> unfinished_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;  // workers: there is a job; the caller: the last part is done
};

}  // namespace mamba::detail
