// One training run of mamba-rl: updates, evaluations, metrics, checkpoints.
#pragma once

#include <cstdint>
#include <string>

#include "programs/report.hpp"
#include "rl/ppo/trainer.hpp"

struct RunOptions {
  mamba_rl::TrainerOptions trainer;
  std::string folder;  // for the checkpoint
  bool resume = false;
  std::int64_t updates = 300;
  std::int64_t evaluate_every = 25;
  std::int64_t evaluations = 1024;  // environments, each for an episode
  std::int64_t save_every = 25;
  std::int64_t stop_at = 0;  // updates, to be resumed; 0: the last
  double enough = 0.99;      // two evaluations in a row end the run
  bool alone = true;         // draws a progress line; else others run beside it
};

struct RunEnd {
  bool finished = false;  // or interrupted, or out of time
  double success = 0;     // of the last greedy evaluation
};

// Trains until it is done, interrupted(), or the clock passes `seconds` (0: no limit); what there
// is is saved then. A run that is resumed with more updates than it had goes on. Metrics go to
// `metrics`, a JSON line an update.
RunEnd run(const RunOptions& options, double seconds, MetricsFile& metrics);

int exit_code(const RunEnd& end);

// What a run has left is never overwritten by another: a folder with one in it is an Error.
void refuse_another_run(const std::string& folder);
