// What a text goes on from: given on the command line, in a file, or on standard input.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mamba/tokenizer.hpp>

class PromptFlags {
 public:
  void add(CLI::App& app);

  bool any() const { return text_ || ids_ || file_; }
  // Whether it is text, and so by default what is generated.
  bool is_text() const { return text_ || file_; }
  const char* name() const { return text_ ? "--prompt" : file_ ? "--prompt-file" : "--prompt-ids"; }
  // Looks at files, which may be pipes: once.
  void load();
  // After load(); none without a prompt. `tokenizer` may be nullptr for ids, all of which are below
  // `vocab`, or it is an ArgumentError. `goes_on`: from an earlier text, so without the special
  // tokens that begin one.
  std::vector<std::int32_t> read(const mamba::Tokenizer* tokenizer, std::int64_t vocab,
                                 bool goes_on) const;

 private:
  std::optional<std::string> text_, ids_, file_;
  std::string loaded_;
};
