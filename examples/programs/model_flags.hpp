// Which model a program runs, where and how; and what else several programs ask on their command
// lines.
#pragma once

#include <CLI/CLI.hpp>

#include <charconv>
#include <cstdint>
#include <limits>
#include <string>

#include <mamba/language_model.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/stream.hpp>
#include <mamba/tokenizer.hpp>

struct ModelFlags {
  std::string folder;
  std::string tokenizer;  // empty: the one beside the model
  std::string device = "cpu";
  std::string dtype;  // empty: as in the file
  int threads = 0;    // 0: one per core

  void add_folder(CLI::App& app);
  void add_tokenizer(CLI::App& app);
  void add_placement(CLI::App& app);

  // Errors are in the name of `command`.
  std::string path(const char* command) const;  // the folder, or that of the shipped model
  mamba::LanguageModel load(const char* command) const;
  // `tokenizer`, or the tokenizer.json beside the model, or bytes where there is none and the
  // vocabulary is 256. Throws in the name of `flag`, which asks for text, if there is nothing, and
  // adds `hint`.
  mamba::Tokenizer load_tokenizer(const char* command, const char* flag,
                                  const mamba::LanguageModel& model, const char* hint = "") const;
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

// A number that is good; `expected` says which are. CLI11's own print the bounds of a double in
// full.
inline CLI::Validator number(const char* expected, bool (*good)(double)) {
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool fits = CLI::detail::lexical_cast(text, value) && good(value);
        return fits ? std::string() : std::string("expected ") + expected + ", got " + text;
      },
      "NUMBER");
}

// Throws unless a file can be made at `path`: known before hours of work, not after them.
void check_can_write(const char* command, const char* flag, const std::string& path);

// A cache in files, of which other processes and later runs know. Says on standard error, in the
// name of `program`, what went wrong with one.
constexpr std::int64_t cache_bytes = std::int64_t{1} << 30;
void add_cache(CLI::App& app, std::string& folder);
mamba::CacheOptions file_cache(const char* program, const std::string& folder);
