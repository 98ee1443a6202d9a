// mamba-rl: trains agents that must remember, and shows how far they can.
//
//   mamba-rl --horizon 200 --controller gru --out run             one run
//   mamba-rl --horizon 200 --controller gru --out run --resume    goes on as if it never stopped
//   mamba-rl --mode scale --horizons 1000 5000 --seeds 3 --out scale
//   scripts/rl_report.py scale                                    a plot and a table
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

#include "../programs/interrupt.hpp"
#include "../programs/program.hpp"
#include "flags.hpp"
#include "scale.hpp"

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
  return run_program(app, argc, argv, [&] { return start(app, flags); });
}
