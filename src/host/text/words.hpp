// Words as GPT-2's pattern cuts them.
#pragma once

#include <string_view>

#include "host/text/unicode_class.hpp"

namespace mamba {

// Cuts a text (UTF-8) as this pattern does:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}

  // The next word; empty at the end.
  std::string_view next();

 private:
  std::size_t length() const;
  std::size_t spaces() const;
  CharacterClass class_at(std::size_t at) const;
  std::size_t run(std::size_t at, CharacterClass kind) const;

  std::string_view text_;
};

}  // namespace mamba
