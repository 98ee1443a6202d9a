// The flags of mamba-rl, and what a run is to do by them.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "rl/app/run.hpp"

struct Flags {
  std::string mode = "quick", controller, device = "cpu", out = "mamba-rl-run", task = "cue";
  std::int64_t horizon = 0, seed = 0, seeds = 1, jobs = 1;
  std::vector<std::int64_t> horizons;
  double seconds = 0, memory = 0, rate = 0;
  bool fixed_horizon = false;
  RunOptions run;
};

void add_flags(CLI::App& app, Flags& flags);

// A flag that the mode would not look at is more likely a mistake than of no interest: an error.
void check_mode(const CLI::App& app, const Flags& flags);

RunOptions options_of(const Flags& flags, const std::string& controller, std::int64_t horizon,
                      std::int64_t seed);
