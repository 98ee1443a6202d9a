// mamba-rl: trains agents that must remember, and shows how far they can.
//
//   mamba-rl --horizon 200 --controller gru --out run             one run
//   mamba-rl --horizon 200 --controller gru --out run --resume    goes on as if it never stopped
//   mamba-rl --mode scale --horizons 1000 5000 --seeds 3 --out scale
//   scripts/rl_report.py scale                                    a plot and a table
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../programs/interrupt.hpp"
#include "run.hpp"

namespace {

constexpr int exit_error = 1;
constexpr int exit_interrupted = 130;  // 128 + SIGINT, as a shell reports it

struct Flags {
  std::string mode = "quick", controller, device = "cpu", out = "mamba-rl-run", task = "cue";
  std::int64_t horizon = 0, seed = 0, seeds = 1, jobs = 1;
  std::vector<std::int64_t> horizons;
  double seconds = 0, memory = 0, rate = 0;
  bool fixed_horizon = false;
  RunOptions run;
};

const std::map<std::string, mamba_rl::Task> tasks{{"cue", mamba_rl::Task::delayed_cue},
                                                  {"bandit", mamba_rl::Task::bandit},
                                                  {"repeat", mamba_rl::Task::repeat_last},
                                                  {"t-maze", mamba_rl::Task::t_maze}};

// CLI11's own print the largest double, in full.
CLI::Validator number(const char* expected, bool (*good)(double)) {
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool fits = CLI::detail::lexical_cast(text, value) && good(value);
        return fits ? std::string() : std::string("expected ") + expected + ", got " + text;
      },
      "NUMBER");
}
const CLI::Validator positive = number("a number above 0", [](double v) { return v > 0; });
const CLI::Validator not_negative = number("0 or more", [](double v) { return v >= 0; });

void add_flags(CLI::App& app, Flags& flags) {
  app.option_defaults()->take_last();  // of a flag that is given twice
  mamba_rl::TrainerOptions& t = flags.run.trainer;
  app.add_option("--mode", flags.mode,
                 "quick: one run; scale: horizons, seeds and controllers; "
                 "evaluate: a run's agent at other horizons")
      ->check(CLI::IsMember({"quick", "scale", "evaluate"}));
  app.add_option("--controller", flags.controller, "mamba or gru (scale: both if not given)")
      ->check(CLI::IsMember({"mamba", "gru"}));
  app.add_option("--horizon", flags.horizon, "Steps between cue and query")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 28));
  app.add_option("--horizons", flags.horizons, "Several, for scale and evaluate")
      ->take_all()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1} << 28));
  app.add_option("--task", flags.task, "cue, or a small one: bandit, repeat, t-maze")
      ->check(CLI::IsMember({"cue", "bandit", "repeat", "t-maze"}));
  app.add_option("--num-bits", t.environment.num_bits, "Of the cue")->check(CLI::Range(1, 16));
  app.add_option("--num-envs", t.num_envs)->check(positive);
  app.add_option("--total-updates", flags.run.updates)->check(positive);
  app.add_option("--chunk-len", t.chunk_len, "Steps an update (default: horizon + 2)")
      ->check(positive);
  app.add_option("--chunks", t.chunks, "Rolled out before every training")->check(positive);
  app.add_flag("--across-chunks", t.across_chunks, "Gradients go through all of them");
  app.add_flag("--fixed-horizon", flags.fixed_horizon, "No curriculum");
  app.add_flag("--published-block", t.controller.published_block,
               "Mamba without norms, with biases and D = 1");
  app.add_option("--width", t.controller.width, "Of encoder and controller")->check(positive);
  app.add_option("--layers", t.controller.layers, "Of mamba")->check(positive);
  app.add_option("--memory", flags.memory,
                 "Steps that a fresh controller remembers (default: ten horizons)")
      ->check(positive);
  app.add_option("--rate", flags.rate, "Learning rate")->check(positive);
  app.add_option("--entropy", t.ppo.entropy_weight, "Its weight in the loss");
  app.add_option("--epochs", t.ppo.epochs)->check(positive);
  app.add_option("--minibatches", t.ppo.minibatches)->check(positive);
  app.add_option("--eval-every", flags.run.evaluate_every, "Updates")->check(positive);
  app.add_option("--eval-envs", flags.run.evaluations,
                 "Episodes of an evaluation, the same ones every time")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--save-every", flags.run.save_every, "Updates")->check(positive);
  app.add_option("--stop-at", flags.run.stop_at,
                 "Stop at this update, to be resumed; 0: at the last")
      ->check(not_negative);
  app.add_option("--max-seconds", flags.seconds, "Stop then, to be resumed; 0: never")
      ->check(not_negative);
  app.add_option("--seed", flags.seed)->check(not_negative);
  app.add_option("--seeds", flags.seeds, "scale: how many, from --seed on")->check(positive);
  app.add_option("--jobs", flags.jobs, "scale: runs at once, each in a thread")
      ->check(CLI::Range(1, 64));
  app.add_option("--device", flags.device, "cpu, cuda or cuda:N");
  app.add_option("--threads", t.threads, "CPU threads (default: one per core)");
  app.add_option("--out", flags.out, "Folder for metrics and checkpoints");
  app.add_flag("--resume", flags.run.resume, "Go on from what is in --out");
}

RunOptions options_of(const Flags& flags, const std::string& controller, std::int64_t horizon,
                      std::int64_t seed) {
  RunOptions options = flags.run;
  mamba_rl::TrainerOptions& t = options.trainer;
  t.device = mamba::Device::parse(flags.device);
  t.environment.task = tasks.at(flags.task);
  t.environment.delay = static_cast<std::int32_t>(horizon);
  t.environment.seed = t.controller.seed = static_cast<std::uint64_t>(seed);
  t.controller.kind = controller;
  t.curriculum = !flags.fixed_horizon;
  // Never shorter than Mamba's as published.
  const double memory = std::max(1000.0, 10.0 * static_cast<double>(horizon));
  t.controller.memory = static_cast<float>(flags.memory > 0 ? flags.memory : memory);
  if (flags.rate > 0) t.ppo.rate = static_cast<float>(flags.rate);
  return options;
}

int end_of(const RunEnd& end) { return interrupted() && !end.finished ? exit_interrupted : 0; }

// What a run has left is never overwritten by another.
void refuse_another_run(const std::string& folder) {
  for (const char* name : {"/metrics.jsonl", "/checkpoint"}) {
    std::error_code none;
    const std::string path = folder + name;
    if (std::filesystem::exists(path, none) && std::filesystem::file_size(path, none) > 0) {
      throw mamba::Error("mamba-rl", "--out", "a folder without a run in it, or --resume", path);
    }
  }
}

int quick(const Flags& flags) {
  if (flags.horizon == 0) throw CLI::RequiredError("--horizon");
  const std::string controller = flags.controller.empty() ? "mamba" : flags.controller;
  RunOptions options = options_of(flags, controller, flags.horizon, flags.seed);
  options.folder = flags.out;
  if (!options.resume) refuse_another_run(flags.out);
  MetricsFile metrics("mamba-rl", flags.out + "/metrics.jsonl");
  return end_of(run(options, flags.seconds, metrics));
}

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

// The runs in their order, `flags.jobs` of them at once. An error of one ends all, each at its next
// run.
int scale(const Flags& flags) {
  if (flags.horizons.empty()) throw CLI::RequiredError("--horizons");
  if (!flags.run.resume) refuse_another_run(flags.out);
  MetricsFile metrics("mamba-rl", flags.out + "/metrics.jsonl");
  const std::vector<RunOptions> runs = runs_of(flags);
  for (const RunOptions& options : runs) std::filesystem::create_directories(options.folder);
  const auto start = std::chrono::steady_clock::now();
  std::mutex mutex;
  std::size_t next = 0;
  int code = 0;
  std::exception_ptr error;
  const auto take_one = [&](const RunOptions& given) {
    RunOptions options = given;
    options.resume = flags.run.resume && std::filesystem::exists(options.folder + "/checkpoint");
    double left = 0;
    if (flags.seconds > 0) {
      const std::chrono::duration<double> gone = std::chrono::steady_clock::now() - start;
      left = flags.seconds - gone.count();
      if (left <= 0) return;
    }
    const RunEnd end = run(options, left, metrics);
    const std::lock_guard<std::mutex> lock(mutex);
    if (!end.finished) {
      code = end_of(end);
      next = runs.size();
      return;
    }
    std::fprintf(stderr, "%s: %.1f %%\n", options.folder.c_str(), 100 * end.success);
  };
  const auto work = [&] {
    for (;;) {
      std::size_t mine = 0;
      {
        const std::lock_guard<std::mutex> lock(mutex);
        if (next >= runs.size()) return;
        mine = next++;
      }
      try {
        take_one(runs[mine]);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        error = std::current_exception();
        next = runs.size();
      }
    }
  };
  std::vector<std::thread> others;
  for (std::int64_t i = 1; i < flags.jobs; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  if (error) std::rethrow_exception(error);
  return code;
}

// The agent of a run, at delays that it was not trained for.
int evaluate(const Flags& flags) {
  if (flags.horizon == 0) throw CLI::RequiredError("--horizon");
  if (flags.horizons.empty()) throw CLI::RequiredError("--horizons");
  const std::string controller = flags.controller.empty() ? "mamba" : flags.controller;
  mamba_rl::Trainer trainer(options_of(flags, controller, flags.horizon, flags.seed).trainer);
  trainer.load(flags.out + "/checkpoint");
  MetricsFile metrics("mamba-rl", flags.out + "/evaluations.jsonl");
  for (const std::int64_t delay : flags.horizons) {
    if (interrupted()) return exit_interrupted;
    const auto at = static_cast<std::int32_t>(delay);
    const double greedy = trainer.evaluate(at, true, flags.run.evaluations).success();
    const double sampled = trainer.evaluate(at, false, flags.run.evaluations).success();
    metrics.line(format(
        "{\"controller\": \"%s\", \"seed\": %lld, \"num_envs\": %lld, \"horizon\": "
        "%lld, \"evaluated_at\": %lld, \"eval_success\": %.5f, \"eval_sampled\": "
        "%.5f}",
        controller.c_str(), static_cast<long long>(flags.seed),
        static_cast<long long>(flags.run.trainer.num_envs), static_cast<long long>(flags.horizon),
        static_cast<long long>(delay), greedy, sampled));
    std::fprintf(stderr, "delay %lld: %.1f %% greedy, %.1f %% sampled\n",
                 static_cast<long long>(delay), 100 * greedy, 100 * sampled);
  }
  return 0;
}

// A flag that the mode would not look at is more likely a mistake than of no interest.
void check_mode(const CLI::App& app, const Flags& flags) {
  const std::map<std::string, std::vector<const char*>> strange{
      {"quick", {"--horizons", "--seeds", "--jobs"}},
      {"scale", {"--horizon"}},
      {"evaluate", {"--seeds", "--jobs", "--resume"}}};
  for (const char* name : strange.at(flags.mode)) {
    if (app.count(name) > 0) throw CLI::ExcludesError("--mode " + flags.mode, name);
  }
  std::vector<std::int64_t> horizons = flags.horizons;
  std::sort(horizons.begin(), horizons.end());
  if (std::adjacent_find(horizons.begin(), horizons.end()) != horizons.end()) {
    throw CLI::ValidationError("--horizons", "each once");
  }
}

int start(const CLI::App& app, const Flags& flags) {
  check_mode(app, flags);
  catch_interrupts();
  std::filesystem::create_directories(flags.out);
  if (flags.mode == "scale") return scale(flags);
  return flags.mode == "evaluate" ? evaluate(flags) : quick(flags);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains agents that must remember a cue, and shows how long they can.", "mamba-rl");
  Flags flags;
  add_flags(app, flags);
  try {
    app.parse(argc, argv);
    return start(app, flags);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    std::fprintf(stderr, "mamba-rl: %s (mamba-rl --help tells more)\n", error.what());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "mamba-rl: not enough memory\n");
  } catch (const std::exception& error) {
    const std::string what = error.what(), us = "mamba-rl: ";
    std::fprintf(stderr, "%s%s\n", what.rfind(us, 0) == 0 ? "" : us.c_str(), what.c_str());
  }
  return exit_error;
}
