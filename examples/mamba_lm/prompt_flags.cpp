#include "prompt_flags.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <string_view>

#include <mamba/error.hpp>

#include "../programs/whole_file.hpp"

namespace {

constexpr const char* standard_input = "-";

bool is_blank(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

// "1,2,3", "1 2 3" as this program prints them, or "[1, 2, 3]" as Python does.
std::vector<std::int32_t> parse_ids(const std::string& text) {
  std::string_view left = text;
  const auto skip_blanks = [&] {
    while (!left.empty() && is_blank(left.front())) left.remove_prefix(1);
  };
  const auto take = [&](char c) {
    skip_blanks();
    if (left.empty() || left.front() != c) return false;
    left.remove_prefix(1);
    skip_blanks();
    return true;
  };
  const auto refuse = [&] {
    const auto ends = [](char c) { return c == ',' || is_blank(c); };
    const std::string_view word = left.substr(
        0, static_cast<std::size_t>(std::find_if(left.begin(), left.end(), ends) - left.begin()));
    throw mamba::ArgumentError("generate", "--prompt-ids", "token ids: 1,2,3 or [1, 2, 3]",
                               left.empty() ? "an end" : "\"" + std::string(word) + "\"");
  };
  std::vector<std::int32_t> ids;
  const bool bracketed = take('[');
  skip_blanks();
  bool more = false;  // after a comma
  while (more || (!left.empty() && left.front() != ']')) {
    std::int32_t id = 0;
    const auto [after, error] = std::from_chars(left.data(), left.data() + left.size(), id);
    const char* const end = left.data() + left.size();
    const bool ended = after == end || *after == ',' || *after == ']' || is_blank(*after);
    if (error != std::errc() || !ended) refuse();
    ids.push_back(id);
    left.remove_prefix(static_cast<std::size_t>(after - left.data()));
    more = take(',');
  }
  if (bracketed != take(']') || !left.empty()) refuse();
  return ids;
}

}  // namespace

void PromptFlags::add(CLI::App& app) {
  CLI::Option* ids = app.add_option("--prompt-ids", ids_,
                                    "Token ids: 1,2,3 or [1, 2, 3]; -: those on standard input");
  CLI::Option* text =
      app.add_option("--prompt", text_,
                     "Text, with the marks of its chat template if the model is one of chats: none "
                     "are added; -: the text on standard input")
          ->excludes(ids);
  app.add_option("--prompt-file", file_,
                 "File whose text is the prompt, byte for byte; -: standard input")
      ->excludes(ids)
      ->excludes(text);
}

void PromptFlags::load() {
  if (!any()) return;
  const std::string& given = file_ ? *file_ : text_ ? *text_ : *ids_;
  if (given == standard_input) {
    loaded_ = whole_input("generate");
  } else {
    loaded_ = file_ ? whole_file("generate", given) : given;
  }
  if (loaded_.empty()) {
    throw mamba::ArgumentError("generate", name(), "a prompt", "an empty one");
  }
}

std::vector<std::int32_t> PromptFlags::read(const mamba::Tokenizer* tokenizer, std::int64_t vocab,
                                            bool goes_on) const {
  if (is_text()) return tokenizer->encode(loaded_, !goes_on);
  if (!ids_) return {};
  const std::vector<std::int32_t> ids = parse_ids(loaded_);
  if (ids.empty()) throw mamba::ArgumentError("generate", name(), "a prompt", "an empty one");
  for (const std::int32_t id : ids) {  // all of them before the first piece is read
    if (id >= 0 && id < vocab) continue;
    throw mamba::ArgumentError("generate", name(), "0 to " + std::to_string(vocab - 1),
                               std::to_string(id));
  }
  return ids;
}
