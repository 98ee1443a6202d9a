#include "rl/app/scale.hpp"

#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "programs/program.hpp"

namespace {

// Every run has a folder of its own for its checkpoint; the metrics of all are in one file.
std::vector<RunOptions> runs_of(const Flags& flags) {
  std::vector<RunOptions> runs;
  for (const std::int64_t horizon : flags.horizons) {
    for (std::int64_t seed = flags.seed; seed < flags.seed + flags.seeds; ++seed) {
      for (const std::string controller : {"mamba", "gru"}) {
        if (!flags.controller.empty() && controller != flags.controller) continue;
        runs.push_back(options_of(flags, controller, horizon, seed));
        runs.back().folder = flags.out + "/" + controller + "-" + std::to_string(horizon) + "-" +
                             std::to_string(seed);
        runs.back().alone = flags.jobs == 1;
      }
    }
  }
  return runs;
}

// The runs of scale in their order, taken by several threads. An error or an interrupt of one ends
// all, each at its next run.
class Runs {
 public:
  Runs(const Flags& flags, std::vector<RunOptions> runs, MetricsFile& metrics)
      : flags_(flags), runs_(std::move(runs)), metrics_(metrics) {}

  // By each of the threads.
  void work() {
    for (std::optional<std::size_t> mine = take(); mine; mine = take()) {
      try {
        if (const std::optional<int> code = do_one(runs_[*mine])) end(*code, nullptr);
      } catch (...) {
        end(exit_error, std::current_exception());
      }
    }
  }
  // When all have worked: the exit code, or the error of the one that had one.
  int result() const {
    if (error_) std::rethrow_exception(error_);
    return code_;
  }

 private:
  std::optional<std::size_t> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (next_ >= runs_.size()) return std::nullopt;
    return next_++;
  }
  void end(int code, std::exception_ptr error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    code_ = code;
    if (!error_) error_ = std::move(error);
    next_ = runs_.size();
  }
  // The exit code if it did not finish.
  std::optional<int> do_one(RunOptions options) {
    options.resume = flags_.run.resume && std::filesystem::exists(options.folder + "/checkpoint");
    double left = 0;
    if (flags_.seconds > 0) {
      const std::chrono::duration<double> gone = std::chrono::steady_clock::now() - start_;
      left = flags_.seconds - gone.count();
      if (left <= 0) return 0;
    }
    const RunEnd end = run(options, left, metrics_);
    if (!end.finished) return exit_code(end);
    std::fprintf(stderr, "%s: %.1f %%\n", options.folder.c_str(), 100 * end.success);
    return std::nullopt;
  }

  const Flags& flags_;
  const std::vector<RunOptions> runs_;
  MetricsFile& metrics_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::mutex mutex_;
  std::size_t next_ = 0;
  int code_ = 0;
  std::exception_ptr error_;
};

}  // namespace

int scale(const Flags& flags) {
  if (flags.horizons.empty()) throw CLI::RequiredError("--horizons");
  if (!flags.run.resume) refuse_another_run(flags.out);
  MetricsFile metrics("mamba-rl", flags.out + "/metrics.jsonl");
  const std::vector<RunOptions> list = runs_of(flags);
  for (const RunOptions& options : list) std::filesystem::create_directories(options.folder);
  Runs runs(flags, list, metrics);
  std::vector<std::thread> others;
  for (std::int64_t i = 1; i < flags.jobs; ++i) others.emplace_back([&] { runs.work(); });
  runs.work();
  for (std::thread& other : others) other.join();
  return runs.result();
}
