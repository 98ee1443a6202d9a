#include "host/text/words.hpp"

#include "host/text/utf8.hpp"

namespace mamba {

std::string_view Words::next() {
  const std::size_t length = this->length();
  const std::string_view word = text_.substr(0, length);
  text_.remove_prefix(length);
  return word;
}

std::size_t Words::length() const {
  if (text_.empty()) return 0;
  if (text_[0] == '\'') {
    for (const std::string_view contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (text_.compare(0, contraction.size(), contraction) == 0) return contraction.size();
    }
  }
  const std::size_t blank = text_[0] == ' ' ? 1 : 0;
  if (blank < text_.size()) {
    const CharacterClass kind = class_at(blank);
    if (kind != CharacterClass::space) return run(blank, kind);
  }
  return spaces();
}

// All blanks, but the last one of several if a word follows: it may begin that word.
std::size_t Words::spaces() const {
  const std::size_t end = run(0, CharacterClass::space);
  if (end == text_.size()) return end;
  std::size_t last = end - 1;
  while ((static_cast<unsigned char>(text_[last]) & 0xC0) == 0x80) --last;
  return last == 0 ? end : last;
}

CharacterClass Words::class_at(std::size_t at) const {
  return class_of(first_character(text_.substr(at)).code);
}

std::size_t Words::run(std::size_t at, CharacterClass kind) const {
  while (at < text_.size()) {
    const Utf8Character next = first_character(text_.substr(at));
    if (class_of(next.code) != kind) break;
    at += next.bytes;
  }
  return at;
}

}  // namespace mamba
