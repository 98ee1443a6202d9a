#include "detail/team.hpp"

#include <chrono>

#include <hwy/cache_control.h>

namespace mamba::detail {

namespace {

constexpr std::uint64_t part_mask = 0xffff;
constexpr int parts_shift = 16;
constexpr int job_shift = 32;

// Long enough to bridge the single-threaded work between two products of a decode step.
constexpr std::chrono::microseconds longest_spin{100};

// True as soon as `ready` is, false if it was not for longest_spin.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      hwy::Pause();
    }
  } while (std::chrono::steady_clock::now() - start < longest_spin);
  return false;
}

}  // namespace

Team::~Team() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Team::run_parts(int parts, Call call, const void* context) {
  if (parts == 0) return;
  while (static_cast<int>(workers_.size()) < size_ - 1) {
    workers_.emplace_back([this] { work(); });
  }
  call_ = call;
  context_ = context;
  unfinished_.store(parts, std::memory_order_relaxed);
  const std::uint64_t job = (ticket_.load(std::memory_order_relaxed) >> job_shift) + 1;
  ticket_.store(job << job_shift | static_cast<std::uint64_t>(parts) << parts_shift);
  if (sleepers_.load() > 0) {
    const std::lock_guard<std::mutex> lock(
        mutex_);  // a worker about to sleep has seen the ticket or sleeps
    wake_.notify_all();
  }
  std::uint32_t seen = 0;
  for (int part = 0; take_part(seen, part);) {
    call_(context_, part);
    finish_part();
  }
  const auto done = [&] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin_until(done)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  ++sleepers_;
  wake_.wait(lock, done);
  --sleepers_;
}

// Takes the next part of the present job, if there is one left; `job` becomes its number.
bool Team::take_part(std::uint32_t& job, int& part) {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    job = static_cast<std::uint32_t>(ticket >> job_shift);
    const std::uint64_t next = ticket & part_mask;
    if (next >= (ticket >> parts_shift & part_mask)) return false;
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) {
      part = static_cast<int>(next);
      return true;
    }
  }
}

void Team::finish_part() {
  if (unfinished_.fetch_sub(1) == 1 && sleepers_.load() > 0) {
    const std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
}

void Team::work() {
  std::uint32_t seen = 0;
  while (!stop_) {
    for (int part = 0; take_part(seen, part);) {
      call_(context_, part);
      finish_part();
    }
    const auto new_job = [&] {
      return static_cast<std::uint32_t>(ticket_.load() >> job_shift) != seen || stop_;
    };
    if (spin_until(new_job)) continue;
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, new_job);
    --sleepers_;
  }
}

}  // namespace mamba::detail
