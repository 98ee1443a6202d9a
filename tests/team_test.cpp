// The threads of a stream: every part once, whoever is awake.
#include "detail/team.hpp"

#include <gtest/gtest.h>

#include <numeric>

namespace mamba::detail {
namespace {

TEST(Team, EveryPartRunsOnceInEveryJob) {
  for (int threads : {1, 2, 3, 8}) {
    Team team(threads);
    std::vector<int> runs(8);
    for (int job = 0; job < 3000; ++job) {
      const int parts = job % 8 + 1;
      std::fill(runs.begin(), runs.end(), 0);
      team.run(parts, [&](int i) { ++runs[static_cast<std::size_t>(i)]; });
      // What the others wrote is seen here: run() returns after all of it.
      ASSERT_EQ(std::accumulate(runs.begin(), runs.end(), 0), parts)
          << threads << " threads, job " << job;
      for (int i = 0; i < parts; ++i) ASSERT_EQ(runs[static_cast<std::size_t>(i)], 1);
      if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // they sleep
    }
  }
}

TEST(Team, NoPartsIsNoWork) {
  Team team(2);
  team.run(0, [](int) { ADD_FAILURE(); });
}

TEST(Team, ManyTeamsAtOnceOnFewCores) {
  std::vector<std::thread> callers;
  std::atomic<int> total{0};
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      Team team(3);
      for (int job = 0; job < 200; ++job) team.run(3, [&](int) { ++total; });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 6 * 200 * 3);
}

}  // namespace
}  // namespace mamba::detail
