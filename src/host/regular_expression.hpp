// Regular expressions of tokenizer.json files.
#pragma once

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

// An expression in the dialect of Oniguruma, which Hugging Face's tokenizers use, run by ICU. Any
// number of threads may use one at once.
class RegularExpression {
 public:
  // `where` names the file, `name` the field. What ICU would not take in the same meaning is a
  // FormatError that names it.
  RegularExpression(const std::string& pattern, const std::string& where, const std::string& name);

  // All matches in `text` (UTF-8), the leftmost first, none overlapping another; an empty one only
  // where no other ends. A text that takes more steps or memory than a reasonable expression needs
  // is an ArgumentError.
  std::vector<Piece> matches(std::string_view text) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

// `pattern` for ICU.
std::string translated_for_icu(const std::string& pattern, const std::string& where,
                               const std::string& name);

}  // namespace mamba
