// Text to token ids and back.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

class Tokenizer {
 public:
  // One id per byte: for models with a vocabulary of 256.
  static Tokenizer bytes() { return Tokenizer(); }

  std::vector<std::int32_t> encode(std::string_view text) const;
  // The bytes of the ids; an id that is no byte is an ArgumentError. A character of several bytes
  // is whole only when all of its ids are there.
  std::string decode(const std::vector<std::int32_t>& ids) const;

 private:
  Tokenizer() = default;
};

}  // namespace mamba
