// Regular expressions of tokenizer.json files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

// A part of a text, in bytes.
struct Piece {
  std::size_t begin;
  std::size_t end;
};

// What expressions may still take of one text, so that those that go back and forth come to an end.
class Patience {
 public:
  explicit Patience(std::size_t bytes);
  // False once it is over.
  bool take_one() { return left_-- > 0; }

 private:
  std::int64_t left_;  // in ICU's unit: ten thousand steps that may have to be taken back
};

// An expression in the dialect of Oniguruma, which Hugging Face's tokenizers use, run by ICU. Any
// number of threads may use one at once.
class RegularExpression {
 public:
  // `where` names the file, `name` the field. What ICU would not take in the same meaning is a
  // FormatError that names it.
  RegularExpression(const std::string& pattern, const std::string& where, const std::string& name);

  // All matches in `text` (UTF-8), the leftmost first, none overlapping another; an empty one only
  // where no other ends. A text that takes more than `patience` or too much memory is an
  // ArgumentError.
  std::vector<Piece> matches(std::string_view text, Patience& patience) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

// `pattern` for ICU.
std::string translated_for_icu(const std::string& pattern, const std::string& where,
                               const std::string& name);

}  // namespace mamba
