// The commands of mamba-lm. Each adds itself to the command line and, when it is the one that was
// given, leaves in `command` what is to be run; its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

#include <mamba/language_model.hpp>
#include <mamba/stream.hpp>

constexpr int exit_interrupted = 130;  // 128 + SIGINT, as a shell reports it

using Command = std::function<int()>;

void add_info(CLI::App& app, Command& command);
void add_logits(CLI::App& app, Command& command);
void add_generate(CLI::App& app, Command& command);

// Which model, where and how it runs.
struct ModelFlags {
  std::string folder;
  std::string device = "cpu";
  std::string dtype;  // empty: as in the file
  int threads = 0;    // 0: one per core

  void add_folder(CLI::App& app);
  void add_placement(CLI::App& app);

  mamba::LanguageModel load(const char* command) const;
  mamba::Stream stream() const;
};

void check_at_least(const char* command, const char* flag, std::int64_t value, std::int64_t low);

// Throws unless a file can be made at `path`: known before hours of work, not after them.
void check_can_write(const char* command, const char* flag, const std::string& path);
