// The commands of mamba-lm. Each adds itself to the command line and, when it is the one that was
// given, leaves in `command` what is to be run; its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>

#include "../programs/model_flags.hpp"
#include "../programs/program.hpp"

using Command = std::function<int()>;

void add_info(CLI::App& app, Command& command);
void add_logits(CLI::App& app, Command& command);
void add_generate(CLI::App& app, Command& command);
void add_bench(CLI::App& app, Command& command);
