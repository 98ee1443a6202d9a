#include "rl/app/flags.hpp"

#include <algorithm>
#include <cmath>
#include <map>

#include "programs/model_flags.hpp"

namespace {

const std::map<std::string, mamba_rl::Task> tasks = [] {
  using mamba_rl::Task;
  std::map<std::string, Task> named;
  for (const Task task : {Task::delayed_cue, Task::bandit, Task::repeat_last, Task::t_maze}) {
    named[name_of(task)] = task;
  }
  return named;
}();

const CLI::Validator positive = number("a number above 0", [](double v) { return v > 0; });
const CLI::Validator not_negative = number("0 or more", [](double v) { return v >= 0; });

}  // namespace

void add_flags(CLI::App& app, Flags& flags) {
  app.option_defaults()->take_last();  // of a flag that is given twice
  mamba_rl::TrainerOptions& t = flags.run.trainer;
  app.add_option("--mode", flags.mode,
                 "quick: one run; scale: horizons, seeds and controllers; "
                 "evaluate: a run's agent at other horizons")
      ->check(CLI::IsMember({"quick", "scale", "evaluate"}));
  app.add_option("--controller", flags.controller,
                 "mamba, mamba2 or gru (scale: mamba and gru if not given)")
      ->check(CLI::IsMember({"mamba", "mamba2", "gru"}));
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
  app.add_option("--entropy", t.ppo.entropy_weight, "Its weight in the loss")
      ->check(number("a finite number", [](double value) { return std::isfinite(value); }));
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
