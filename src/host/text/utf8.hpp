// UTF-8 that may be broken or cut off, one character at a time.
#pragma once

#include <string>
#include <string_view>

namespace mamba {

constexpr const char* replacement_character = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Character {
  enum Kind {
    whole,
    invalid,  // `bytes` that no continuation can save: U+FFFD stands for all of them
    cut       // the text ends inside of a character that is valid so far
  };
  Kind kind = invalid;
  std::size_t bytes = 1;
  char32_t code = 0xFFFD;
};

// The first character of `text`, which is not empty. What is invalid is measured as the Unicode
// Standard recommends (3.9, "substitution of maximal subparts"), and so do Rust and Python.
inline Utf8Character first_character(std::string_view text) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {Utf8Character::whole, 1, lead};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code = lead & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Character::cut, i, 0xFFFD};
    unsigned char low = 0x80;
    unsigned char high = 0xBF;
    if (i == 1) {  // neither longer forms than needed, nor surrogates, nor beyond U+10FFFF
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (at(i) < low || at(i) > high) return {Utf8Character::invalid, i, 0xFFFD};
    code = code << 6 | (at(i) & 0x3Fu);
  }
  return {Utf8Character::whole, length, code};
}

// Appends what of `text` is whole to `to`, U+FFFD for what is invalid, and returns how many bytes
// that took: all but those of a character that is cut off at the end.
inline std::size_t append_whole(std::string_view text, std::string& to) {
  std::size_t taken = 0;
  while (taken < text.size()) {
    const Utf8Character next = first_character(text.substr(taken));
    if (next.kind == Utf8Character::cut) break;
    if (next.kind == Utf8Character::whole) {
      to.append(text, taken, next.bytes);
    } else {
      to += replacement_character;
    }
    taken += next.bytes;
  }
  return taken;
}

}  // namespace mamba
