// Tokens as text in whole characters, whatever the tokens make.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <mamba/tokenizer.hpp>

inline std::string whole_text(const mamba::Tokenizer& tokenizer,
                              const std::vector<std::int32_t>& tokens) {
  mamba::TextStream text;
  const std::string whole = text.push(tokenizer.decode(tokens));
  return whole + text.finish();
}
