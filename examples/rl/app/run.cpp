#include "rl/app/run.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>

#include "programs/interrupt.hpp"
#include "programs/program.hpp"

namespace {

using mamba_rl::Trainer;
using mamba_rl::UpdateResult;

// What a run remembers beside its trainer.
struct Clock {
  double seconds = 0;          // of earlier processes
  std::int64_t successes = 0;  // evaluations in a row that were good enough
  double last = 0;             // the last one's

  std::map<std::string, std::string> notes(double more) const {
    return {{"seconds", std::to_string(seconds + more)},
            {"successes_in_a_row", std::to_string(successes)},
            {"last_success", std::to_string(last)}};
  }
  void read(const std::map<std::string, std::string>& notes) {
    const auto note = [&](const char* key) {
      const auto at = notes.find(key);
      return at == notes.end() ? std::string("0") : at->second;
    };
    seconds = std::stod(note("seconds"));
    successes = std::stoll(note("successes_in_a_row"));
    last = std::stod(note("last_success"));
  }
};

// `steps`: of an update, in all environments.
std::string line_of(const mamba_rl::TrainerOptions& t, const UpdateResult& r, double seconds,
                    double steps, double speed, const std::string& more) {
  return format(
      "{\"controller\": \"%s\", \"published_block\": %s, \"task\": \"%s\", \"curriculum\": %s, "
      "\"seed\": %llu, \"num_envs\": %lld, \"chunk_len\": %lld, \"horizon\": %d, \"update\": %lld, "
      "\"env_steps\": %lld, \"delay\": %d, \"train_success\": %.5f, \"queries\": %lld, "
      "\"policy_loss\": %.6f, \"value_loss\": %.6f, \"entropy\": %.5f, \"divergence\": %.6f, "
      "\"clipped\": %.5f, \"gradient_norm\": %.5g, \"rollout_steps_per_s\": %.0f, "
      "\"training_steps_per_s\": %.0f, \"steps_per_s\": %.0f, \"seconds\": %.3f%s}",
      t.controller.kind.c_str(), t.controller.published_block ? "true" : "false",
      name_of(t.environment.task), t.curriculum ? "true" : "false",
      static_cast<unsigned long long>(t.environment.seed), static_cast<long long>(t.num_envs),
      static_cast<long long>(t.chunk_len), t.environment.delay, static_cast<long long>(r.update),
      static_cast<long long>(r.env_steps), r.delay, r.score.success(),
      static_cast<long long>(r.score.queries), r.policy_loss, r.value_loss, r.entropy, r.divergence,
      r.clipped, r.gradient_norm, steps / std::max(r.rollout_seconds, 1e-9),
      steps / std::max(r.training_seconds, 1e-9), speed, seconds, more.c_str());
}

}  // namespace

RunEnd run(const RunOptions& options, double seconds, MetricsFile& metrics) {
  Trainer trainer(options.trainer);
  std::filesystem::create_directories(options.folder);
  const std::string checkpoint = options.folder + "/checkpoint";
  Clock clock;
  if (options.resume) {
    clock.read(trainer.load(checkpoint));
    // Lines of updates after the checkpoint come again; those of other runs in the file stay.
    const std::string any = line_of(trainer.options(), {}, 0, 0, 0, "");
    const std::string ours = any.substr(0, any.find("\"update\": "));
    metrics.drop_repeated("update", [&](std::int64_t update, const std::string& line) {
      return update > trainer.updates() && line.compare(0, ours.size(), ours) == 0;
    });
  }
  const auto finished = [&] {
    return clock.successes >= 2 || trainer.updates() >= options.updates;
  };
  const mamba_rl::TrainerOptions& t = trainer.options();
  const auto steps = static_cast<double>(t.num_envs * t.chunk_len * t.chunks);
  const std::int64_t end =
      options.stop_at > 0 ? std::min(options.stop_at, options.updates) : options.updates;
  ProgressLine progress(trainer.updates(), options.updates);
  progress.say(format("%s, horizon %d, seed %llu: %lld environments, %lld steps an update",
                      t.controller.kind.c_str(), t.environment.delay,
                      static_cast<unsigned long long>(t.environment.seed),
                      static_cast<long long>(t.num_envs), static_cast<long long>(steps)));
  if (finished()) {
    progress.say(format("nothing to do: done after update %lld with %.1f %%",
                        static_cast<long long>(trainer.updates()), 100 * clock.last));
    return {true, clock.last};
  }
  if (!options.resume) trainer.save(checkpoint, clock.notes(0));  // or say now that it cannot be
  const std::int64_t first = trainer.updates();
  while (trainer.updates() < end && !finished() && !interrupted() &&
         (seconds == 0 || progress.seconds() < seconds)) {
    const UpdateResult result = trainer.update();
    const double speed =
        steps * static_cast<double>(result.update - first) / std::max(progress.seconds(), 1e-9);
    std::string evaluated;
    if (result.update % options.evaluate_every == 0 || result.update == options.updates) {
      const std::int32_t horizon = t.environment.delay;
      clock.last = trainer.evaluate(horizon, true, options.evaluations).success();
      const double sampled = trainer.evaluate(horizon, false, options.evaluations).success();
      evaluated = format(", \"eval_success\": %.5f, \"eval_sampled\": %.5f", clock.last, sampled);
      progress.say(format("%supdate %lld: %.1f %% greedy, %.1f %% sampled at horizon %d",
                          options.alone ? "" : (options.folder + ": ").c_str(),
                          static_cast<long long>(result.update), 100 * clock.last, 100 * sampled,
                          horizon));
      clock.successes = clock.last >= options.enough ? clock.successes + 1 : 0;
    }
    metrics.line(line_of(t, result, clock.seconds + progress.seconds(), steps, speed, evaluated));
    if (options.alone) {
      progress.draw(result.update, format("delay %d  success %.1f %%  %.0f steps/s", result.delay,
                                          100 * result.score.success(), speed));
    }
    if (result.update % options.save_every == 0) {
      trainer.save(checkpoint, clock.notes(progress.seconds()));
    }
  }
  trainer.save(checkpoint, clock.notes(progress.seconds()));
  return {finished(), clock.last};
}

int exit_code(const RunEnd& end) { return interrupted() && !end.finished ? exit_interrupted : 0; }

void refuse_another_run(const std::string& folder) {
  for (const char* name : {"/metrics.jsonl", "/checkpoint"}) {
    std::error_code none;
    const std::string path = folder + name;
    if (std::filesystem::exists(path, none) && std::filesystem::file_size(path, none) > 0) {
      throw mamba::Error("mamba-rl", "--out", "a folder without a run in it, or --resume", path);
    }
  }
}
