// The commands of mamba-lm. Each adds itself to the command line and, when it is the one that was
// given, leaves in `command` what is to be run; its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>

#include <charconv>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>

#include <mamba/language_model.hpp>
#include <mamba/stream.hpp>
#include <mamba/tokenizer.hpp>

constexpr int exit_interrupted = 130;  // 128 + SIGINT, as a shell reports it

using Command = std::function<int()>;

void add_info(CLI::App& app, Command& command);
void add_logits(CLI::App& app, Command& command);
void add_generate(CLI::App& app, Command& command);
void add_bench(CLI::App& app, Command& command);

// Which model, where and how it runs.
struct ModelFlags {
  std::string folder;
  std::string device = "cpu";
  std::string dtype;  // empty: as in the file
  int threads = 0;    // 0: one per core

  void add_folder(CLI::App& app);
  void add_placement(CLI::App& app);

  std::string path(const char* command) const;  // the folder, or that of the shipped model
  mamba::LanguageModel load(const char* command) const;
  // `given`, or the tokenizer.json beside the model, or bytes where there is none and the
  // vocabulary is 256. Throws in the name of `flag`, which asks for text, if there is nothing.
  mamba::Tokenizer tokenizer(const char* command, const char* flag, const std::string& given,
                             const mamba::LanguageModel& model) const;
  mamba::Stream stream() const;
};

// A whole number from `low` to the largest T. CLI11 itself lets them wrap round, saturate and be
// octal.
template <class T>
CLI::Validator whole_number(T low) {
  const auto check = [low](const std::string& text) {
    T value = 0;
    std::from_chars(text.data(), text.data() + text.size(), value);
    if (std::to_string(value) == text && value >= low) return std::string();
    return "expected a whole number from " + std::to_string(low) + " to " +
           std::to_string(std::numeric_limits<T>::max()) + ", got " + text;
  };
  return CLI::Validator(check, "", "");
}

// Throws unless a file can be made at `path`: known before hours of work, not after them.
void check_can_write(const char* command, const char* flag, const std::string& path);
