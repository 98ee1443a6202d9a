// mamba-rl: trains agents that must remember, and shows how far they can.
//
//   mamba-rl --horizon 200 --controller gru --out run             one run
//   mamba-rl --horizon 200 --controller gru --out run --resume    goes on as if it never stopped
//   mamba-rl --mode scale --horizons 1000 5000 --seeds 3 --out scale
//   mamba-rl --mode evaluate --horizons 500 --out run             its agent at another horizon
//   scripts/rl_report.py scale                                    a plot and a table
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <string>

#include <mamba/error.hpp>

#include "programs/interrupt.hpp"
#include "programs/program.hpp"
#include "rl/app/flags.hpp"
#include "rl/app/run_configuration.hpp"
#include "rl/app/scale.hpp"

namespace {

int quick(const Flags& flags) {
  if (flags.horizon == 0) throw CLI::RequiredError("--horizon");
  const std::string controller = flags.controller.empty() ? "mamba" : flags.controller;
  RunOptions options = options_of(flags, controller, flags.horizon, flags.seed);
  options.folder = flags.out;
  if (!options.resume) refuse_another_run(flags.out);
  MetricsFile metrics("mamba-rl", flags.out + "/metrics.jsonl");
  return exit_code(run(options, flags.seconds, metrics));
}

// A flag of the run that is given all the same must say what the run says.
void check_agrees(const CLI::App& app, const Flags& flags, const mamba_rl::TrainerOptions& run) {
  const mamba_rl::TrainerOptions& given = flags.run.trainer;
  const auto check = [&](const char* flag, const auto& got, const auto& expected) {
    if (app.count(flag) == 0 || got == expected) return;
    std::ostringstream in_run, here;
    in_run << expected;
    here << got;
    throw mamba::ArgumentError("mamba-rl", flag, in_run.str() + " as in the run, or none",
                               here.str());
  };
  const mamba_rl::ControllerConfig& controller = run.controller;
  check("--controller", flags.controller, controller.kind);
  check("--horizon", flags.horizon, std::int64_t{run.environment.delay});
  check("--seed", static_cast<std::uint64_t>(flags.seed), run.environment.seed);
  check("--task", flags.task, std::string(name_of(run.environment.task)));
  check("--num-bits", given.environment.num_bits, run.environment.num_bits);
  check("--num-envs", given.num_envs, run.num_envs);
  check("--chunk-len", given.chunk_len, run.chunk_len);
  check("--chunks", given.chunks, run.chunks);
  check("--width", given.controller.width, controller.width);
  check("--layers", given.controller.layers, controller.layers);
  check("--published-block", given.controller.published_block, controller.published_block);
  check("--fixed-horizon", flags.fixed_horizon, !run.curriculum);
}

// The agent of a run, at delays that it was not trained for. What it is, its checkpoint says.
int evaluate(const CLI::App& app, const Flags& flags) {
  if (flags.horizons.empty()) throw CLI::RequiredError("--horizons");
  const std::string checkpoint = flags.out + "/checkpoint";
  mamba_rl::TrainerOptions options = mamba_rl::configuration_of(checkpoint);
  check_agrees(app, flags, options);
  options.device = mamba::Device::parse(flags.device);
  options.threads = flags.run.trainer.threads;
  mamba_rl::Trainer trainer(options);
  trainer.load(checkpoint);
  MetricsFile metrics("mamba-rl", flags.out + "/evaluations.jsonl");
  for (const std::int64_t delay : flags.horizons) {
    if (interrupted()) return exit_interrupted;
    const auto at = static_cast<std::int32_t>(delay);
    const double greedy = trainer.evaluate(at, true, flags.run.evaluations).success();
    const double sampled = trainer.evaluate(at, false, flags.run.evaluations).success();
    metrics.line(format(
        "{\"controller\": \"%s\", \"seed\": %llu, \"num_envs\": %lld, \"horizon\": "
        "%lld, \"evaluated_at\": %lld, \"eval_success\": %.5f, \"eval_sampled\": "
        "%.5f}",
        options.controller.kind.c_str(), static_cast<unsigned long long>(options.environment.seed),
        static_cast<long long>(options.num_envs), static_cast<long long>(options.environment.delay),
        static_cast<long long>(delay), greedy, sampled));
    std::fprintf(stderr, "delay %lld: %.1f %% greedy, %.1f %% sampled\n",
                 static_cast<long long>(delay), 100 * greedy, 100 * sampled);
  }
  return 0;
}

int start(const CLI::App& app, const Flags& flags) {
  check_mode(app, flags);
  catch_interrupts();
  if (flags.mode == "evaluate") return evaluate(app, flags);
  std::filesystem::create_directories(flags.out);
  return flags.mode == "scale" ? scale(flags) : quick(flags);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains agents that must remember a cue, and shows how long they can.", "mamba-rl");
  Flags flags;
  add_flags(app, flags);
  return run_program(app, argc, argv, [&] { return start(app, flags); });
}
