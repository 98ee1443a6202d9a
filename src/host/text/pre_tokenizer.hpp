// How a text is cut into the words that a tokenizer's model then takes one by one.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "host/core/json.hpp"
#include "host/text/regular_expression.hpp"

namespace mamba {

// One step of a pre-tokenizer, as Hugging Face's tokenizers define it.
struct Cut {
  enum class At { words, nothing, numbers, punctuation, text, expression };
  // What becomes of what the step looks for.
  enum class Matches { removed, isolated, merged_with_previous, merged_with_next, contiguous };

  At at = At::nothing;
  Matches matches = Matches::isolated;
  bool invert = false;  // what lies between the matches is looked for
  // ByteLevel: later steps see the text in GPT-2's alphabet.
  bool into_alphabet = false;
  bool blank_in_front = false;  // each piece is given one if it does not begin with one
  std::string text;
  std::optional<RegularExpression> expression;
};

class PreTokenizer {
 public:
  // At most one of `steps` is into the alphabet.
  explicit PreTokenizer(std::vector<Cut> steps = {});

  // Calls word(bytes) for each word of `text` (UTF-8), in order.
  void each_word(std::string_view text, Patience& patience,
                 const std::function<void(std::string_view)>& word) const;

 private:
  std::vector<Cut> steps_;
  bool words_alone_;  // as GPT-2 and GPT-NeoX have it
};

// "pre_tokenizer" of a tokenizer.json; `where` names the file. What would change ids in a way that
// is not known here is a FormatError.
PreTokenizer read_pre_tokenizer(const Json& value, const std::string& where);

}  // namespace mamba
