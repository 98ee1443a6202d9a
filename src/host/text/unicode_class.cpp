#include "host/text/unicode_class.hpp"

#include <unicode/uchar.h>

#include <array>

namespace mamba {
namespace {

CharacterClass look_up(char32_t code) {
  const auto c = static_cast<UChar32>(code);
  const auto category = U_GET_GC_MASK(c);
  if ((category & U_GC_L_MASK) != 0) return CharacterClass::letter;
  if ((category & U_GC_N_MASK) != 0) return CharacterClass::number;
  return u_isUWhiteSpace(c) != 0 ? CharacterClass::space : CharacterClass::other;
}

}  // namespace

CharacterClass class_of(char32_t code) {
  static const auto ascii = [] {
    std::array<CharacterClass, 128> classes{};
    for (std::size_t c = 0; c < classes.size(); ++c) classes[c] = look_up(static_cast<char32_t>(c));
    return classes;
  }();
  return code < ascii.size() ? ascii[code] : look_up(code);
}

bool is_punctuation(char32_t code) {
  if (code < 0x80) return code > ' ' && code < 0x7F && class_of(code) == CharacterClass::other;
  const auto c = static_cast<UChar32>(code);
  // Hugging Face's tokenizers have the table of Unicode 8. Two of its characters are no punctuation
  // any more, and later ones are not in it.
  if (c == 0x166D || c == 0x111C9) return true;
  if ((U_GET_GC_MASK(c) & U_GC_P_MASK) == 0) return false;
  UVersionInfo age;
  u_charAge(c, age);
  return age[0] <= 8;
}

}  // namespace mamba
