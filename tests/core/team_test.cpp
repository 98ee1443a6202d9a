// The threads of a process and what streams borrow of them: every part once, whoever is awake.
#include "detail/team.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <mamba/error.hpp>
#include <mamba/stream.hpp>

#include "core/process_threads.hpp"
#include "core/sanitizers.hpp"

namespace mamba::detail {
namespace {

TEST(TeamThreads, EveryPartRunsOnceInEveryJob) {
  for (int threads : {1, 2, 3, 8}) {
    const Team team(threads);
    std::vector<int> runs(8);
    for (int job = 0; job < 3000; ++job) {
      const int parts = job % 8 + 1;
      std::fill(runs.begin(), runs.end(), 0);
      team.run(parts, [&](int i) { ++runs[static_cast<std::size_t>(i)]; });
      // What the others wrote is seen here: run() returns after all of it.
      ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), 0), parts)
          << threads << " threads, job " << job;
      for (int i = 0; i < parts; ++i) ASSERT_EQ(runs[static_cast<std::size_t>(i)], 1);
    }
  }
}

TEST(TeamThreads, NoPartsIsNoWork) {
  const Team team(2);
  team.run(0, [](int) { ADD_FAILURE(); });
}

// More parts than one word counts are cut into pieces of several.
TEST(TeamThreads, AnyNumberOfPartsEnds) {
  for (const int parts : {65534, 65535, 65536, 70000, 131072, 1000003}) {
    for (const int threads : {1, 2, 3}) {
      std::vector<unsigned char> runs(static_cast<std::size_t>(parts));
      Team(threads).run(parts, [&](int i) { ++runs[static_cast<std::size_t>(i)]; });
      EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), parts) << threads << " threads";
    }
  }
}

// Everyone of a team of three is in a part at once, and with other teams' threads idle never more.
TEST(TeamThreads, ATeamUsesAllItsThreadsAndNoMore) {
  const Team others(8);
  const Team team(3);
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0, most = 0;
  bool met = false;
  team.run(64, [&](int) {
    std::unique_lock<std::mutex> lock(mutex);
    most = std::max(most, ++inside);
    met = met || inside == 3;
    changed.notify_all();
    changed.wait(lock, [&] { return met; });
    --inside;
  });
  EXPECT_EQ(most, 3);
}

TEST(TeamThreads, ManyTeamsAtOnceOnFewCores) {
  std::vector<std::thread> callers;
  std::atomic<int> total{0};
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      const Team team(3);
      for (int job = 0; job < 200; ++job) team.run(3, [&](int) { ++total; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 6 * 200 * 3);
}

// What a server does that forks after it has loaded its model.
TEST(TeamThreads, AForkedProcessHasThreadsOfItsOwn) {
#if MAMBA_THREAD_SANITIZER
  GTEST_SKIP() << "the thread sanitizer ends a forked process that starts threads";
#endif
  const Team team(3);
  const auto whole = [](const Team& by) {
    std::vector<int> runs(1000);
    by.run(1000, [&](int i) { ++runs[static_cast<std::size_t>(i)]; });
    return std::count(runs.begin(), runs.end(), 1) == 1000;
  };
  ASSERT_TRUE(whole(team));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);
    bool good = whole(team) && testing::process_threads() == 1;
    const Team own(3);
    good = good && testing::process_threads() >= 3;  // more where the parent's streams have more
    for (int i = 0; i < 100; ++i) {
      good = good && whole(own) && whole(team);
      if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // they sleep
    }
    std::atomic<int> inside{0};  // both come, or the alarm does
    own.run(3, [&](int) {
      ++inside;
      while (inside < 3) std::this_thread::yield();
    });
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_TRUE(whole(team));
}

// More calls at once than there are places for: those without one do their work alone.
TEST(TeamThreads, MoreCallsAtOnceThanPlaces) {
  const Team team(2);
  std::vector<std::thread> callers;
  std::mutex mutex;
  std::condition_variable changed;
  int inside = 0;
  std::atomic<int> total{0};
  for (int caller = 0; caller < 80; ++caller) {
    callers.emplace_back([&] {
      team.run(4, [&](int) {
        ++total;
        std::unique_lock<std::mutex> lock(mutex);
        ++inside;
        changed.notify_all();
        changed.wait(lock, [&] { return inside >= 80; });  // all have begun
      });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 4 * 80);
}

TEST(TeamThreads, StreamsHoldNoThreadsOfTheirOwn) {
  const Stream largest(Device::cpu(), 16);
  const int before = testing::process_threads();
  std::vector<Stream> streams;
  for (int i = 0; i < 200; ++i) streams.emplace_back(Device::cpu(), 16);
  // As many as the cores take, on a machine with more than 16 of them.
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  EXPECT_LE(testing::process_threads(), std::max(before, cores + before - 15));
}

// Where the system starts no more threads the constructor says so, and calls work with those that
// there are. In a process of its own, which has room for a few stacks only.
TEST(TeamThreads, ARefusedThreadIsAnErrorOfTheConstructor) {
#if MAMBA_ADDRESS_SANITIZER || MAMBA_THREAD_SANITIZER
  GTEST_SKIP() << "sanitizers need the address space that is limited here";
#endif
  const auto refused = [] {
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    const rlim_t room = pages * 4096 + (rlim_t{256} << 20);
    const rlimit limit{room, room};
    if (setrlimit(RLIMIT_AS, &limit) != 0) std::_Exit(3);
    try {
      const Stream stream(Device::cpu(), 1024);
      std::_Exit(4);
    } catch (const DeviceError& error) {
      const std::string text = error.what();
      if (text.find("Stream: threads: expected 1024, got ") != 0) std::_Exit(5);
    }
    int runs = 0;
    Team(1).run(3, [&](int) { ++runs; });
    std::_Exit(runs == 3 ? 0 : 6);
  };
  EXPECT_EXIT(refused(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace mamba::detail
