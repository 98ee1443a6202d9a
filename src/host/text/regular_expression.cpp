#include "host/text/regular_expression.hpp"

#include <fmt/format.h>
#include <unicode/regex.h>

#include <algorithm>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/text/utf8.hpp"

namespace mamba {

struct RegularExpression::Compiled {
  std::string source;
  std::unique_ptr<icu::RegexPattern> pattern;
};

RegularExpression::RegularExpression(const std::string& pattern, const std::string& where,
                                     const std::string& name) {
  const std::string translated = translated_for_icu(pattern, where, name);
  auto compiled = std::make_shared<Compiled>();
  compiled->source = pattern;
  UErrorCode status = U_ZERO_ERROR;
  UParseError place;
  compiled->pattern.reset(
      icu::RegexPattern::compile(icu::UnicodeString::fromUTF8(translated), 0, place, status));
  if (U_FAILURE(status)) {
    throw FormatError(where, name, "a regular expression that ICU takes",
                      in_quotes(pattern) + ": " + u_errorName(status));
  }
  compiled_ = std::move(compiled);
}

namespace {

constexpr std::size_t most_text = std::size_t{1} << 30;  // ICU counts in 32 bits
constexpr std::int32_t stack_bytes = 64 << 20;

UBool U_CALLCONV goes_on(const void* patience, std::int32_t) {
  return static_cast<Patience*>(const_cast<void*>(patience))->take_one() ? 1 : 0;
}

// Places in UTF-16, which never go back, as places in the UTF-8 text.
class Places {
 public:
  explicit Places(std::string_view text) : text_(text) {}

  std::size_t in_bytes(std::int32_t place) {
    while (units_ < place) {
      const std::size_t bytes = first_character(text_.substr(at_)).bytes;
      units_ += bytes == 4 ? 2 : 1;
      at_ += bytes;
    }
    return at_;
  }

 private:
  std::string_view text_;
  std::size_t at_ = 0;
  std::int32_t units_ = 0;
};

}  // namespace

// Expressions as published take a few steps for each character.
Patience::Patience(std::size_t bytes) : left_(1000 + static_cast<std::int64_t>(bytes / 100)) {}

std::vector<Piece> RegularExpression::matches(std::string_view text, Patience& patience) const {
  if (text.size() > most_text) {
    throw ArgumentError("Tokenizer::encode", "text", fmt::format("at most {} bytes", most_text),
                        fmt::format("{}", text.size()));
  }
  const icu::UnicodeString input = icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())));
  UErrorCode status = U_ZERO_ERROR;
  const std::unique_ptr<icu::RegexMatcher> matcher(compiled_->pattern->matcher(input, status));
  if (matcher) {
    matcher->setMatchCallback(goes_on, &patience, status);
    matcher->setStackLimit(stack_bytes, status);
  }
  std::vector<Piece> found;
  Places places(text);
  std::int32_t last = -1;  // where the last match ends
  while (U_SUCCESS(status) && matcher->find(status) != 0) {
    const std::int32_t begin = matcher->start(status);
    const std::int32_t end = matcher->end(status);
    if (begin == end && end == last) continue;
    last = end;
    const std::size_t begin_in_bytes = places.in_bytes(begin);
    found.push_back({begin_in_bytes, places.in_bytes(end)});
  }
  if (U_FAILURE(status)) {
    throw ArgumentError("Tokenizer::encode", "text",
                        fmt::format("one that the regular expression {} does not take too long for",
                                    in_quotes(compiled_->source)),
                        fmt::format("{} bytes, {}", text.size(), u_errorName(status)));
  }
  return found;
}

}  // namespace mamba
