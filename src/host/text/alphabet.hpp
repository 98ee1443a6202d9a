// GPT-2's alphabet: bytes written as printable characters, one for each.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mamba {

class Alphabet {
 public:
  static const Alphabet& get();

  // Appends the characters of `bytes`, in UTF-8.
  void write(std::string_view bytes, std::string& to) const;
  // The bytes that `text` is written for; nothing if it has a character that is not of the
  // alphabet.
  std::optional<std::string> read(std::string_view text) const;

 private:
  Alphabet();
  std::optional<unsigned char> byte_of(char32_t code) const;

  // Bytes that are printable in Latin-1 stand for themselves, the others follow from U+0100 on.
  static constexpr char32_t end = 0x100 + 68;
  std::array<char32_t, 256> characters_{};
  std::array<std::int16_t, end> bytes_{};  // -1: none
};

}  // namespace mamba
