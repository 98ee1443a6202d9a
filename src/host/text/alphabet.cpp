#include "host/text/alphabet.hpp"

#include "host/text/utf8.hpp"

namespace mamba {

const Alphabet& Alphabet::get() {
  static const Alphabet alphabet;
  return alphabet;
}

Alphabet::Alphabet() {
  bytes_.fill(-1);
  char32_t next = 0x100;
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const bool itself =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
    const char32_t code = itself ? static_cast<char32_t>(byte) : next++;
    characters_[byte] = code;
    bytes_[code] = static_cast<std::int16_t>(byte);
  }
}

void Alphabet::write(std::string_view bytes, std::string& to) const {
  for (const char byte : bytes) {
    const char32_t code = characters_[static_cast<unsigned char>(byte)];
    if (code < 0x80) {
      to.push_back(static_cast<char>(code));
    } else {  // all are below U+0800
      to.push_back(static_cast<char>(0xC0 | code >> 6));
      to.push_back(static_cast<char>(0x80 | (code & 0x3F)));
    }
  }
}

std::optional<unsigned char> Alphabet::byte_of(char32_t code) const {
  if (code >= end || bytes_[code] < 0) return std::nullopt;
  return static_cast<unsigned char>(bytes_[code]);
}

std::optional<std::string> Alphabet::read(std::string_view text) const {
  std::string bytes;
  while (!text.empty()) {
    const Utf8Character next = first_character(text);
    const auto byte = byte_of(next.code);
    if (next.kind != Utf8Character::whole || !byte) return std::nullopt;
    bytes.push_back(static_cast<char>(*byte));
    text.remove_prefix(next.bytes);
  }
  return bytes;
}

}  // namespace mamba
