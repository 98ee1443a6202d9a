// Threads that wait for each other, and for nobody who has failed or left.
#include "detail/meeting.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "testing.hpp"

namespace mamba {
namespace {

using detail::Meeting;
using testing::expect_error;

// work(rank) on so many threads; what one throws is its failure, as in DataParallel::run.
void on_threads(Meeting& meeting, int count, const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        work(i);
      } catch (const std::exception& error) {
        meeting.fail(i, std::current_exception(), error.what());
      }
      meeting.leave(i);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(meeting.all_left(std::chrono::milliseconds(0)), count == meeting.count());
}

TEST(Meeting, EveryoneSeesWhatEveryoneWrote) {
  for (const int count : {1, 2, 5}) {
    Meeting meeting(count);
    std::vector<int> written(static_cast<std::size_t>(count));
    on_threads(meeting, count, [&](int rank) {
      for (int round = 1; round <= 200; ++round) {
        written[static_cast<std::size_t>(rank)] = round;
        meeting.meet(rank);
        for (const int number : written) ASSERT_EQ(number, round);
        meeting.meet(rank);
      }
    });
    EXPECT_EQ(meeting.failure(), nullptr);
  }
}

// Whoever fails, the others are about to wait or wait already: many rounds, for both to happen.
constexpr int rounds = 300;

TEST(Meeting, AFailureEndsEveryWaitAndIsKept) {
  const std::string text = ": expected all ranks at work, got the failure of rank 1: out of luck";
  for (int round = 0; round < rounds; ++round) {
    Meeting meeting(3);
    std::atomic<int> arriving{0};
    on_threads(meeting, 3, [&](int rank) {
      meeting.meet(rank);
      if (rank == 1) {
        while (arriving < 2) std::this_thread::yield();
        throw std::runtime_error("out of luck");
      }
      const std::string all = "DataParallel: rank " + std::to_string(rank) + text;
      ++arriving;
      expect_error<DeviceError>(all, [&] { meeting.meet(rank); });
      expect_error<DeviceError>(all, [&] { meeting.meet(rank); });  // from now on
      expect_error<DeviceError>(all, [&] { meeting.check(rank); });
      throw std::logic_error("what followed");
    });
    expect_error<std::runtime_error>("out of luck",
                                     [&] { std::rethrow_exception(meeting.failure()); });
  }
}

TEST(Meeting, AFailureOfNoRankEndsEveryWaitToo) {
  for (int round = 0; round < rounds; ++round) {
    Meeting meeting(3);
    std::atomic<int> arriving{0};
    std::thread outside([&] {
      while (arriving < 2) std::this_thread::yield();
      meeting.fail(-1, std::make_exception_ptr(std::runtime_error("lost")), "a lost cable");
    });
    on_threads(meeting, 2, [&](int rank) {
      ++arriving;
      expect_error<DeviceError>("DataParallel: rank " + std::to_string(rank) +
                                    ": expected all ranks at work, got a lost cable",
                                [&] { meeting.meet(rank); });
    });
    outside.join();
  }
}

TEST(Meeting, NobodyWaitsForOneThatHasReturned) {
  Meeting meeting(3);
  on_threads(meeting, 3, [&](int rank) {
    if (rank == 2) return;
    meeting.meet(rank);
  });
  ASSERT_NE(meeting.failure(), nullptr);
  try {
    std::rethrow_exception(meeting.failure());
  } catch (const DeviceError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("expected all ranks to meet, got rank 2, which has returned"),
              std::string::npos)
        << text;
  }
}

}  // namespace
}  // namespace mamba
