// What a tokenizer.json says, in the form in which it is used.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "host/text/added_tokens.hpp"
#include "host/text/pre_tokenizer.hpp"

namespace mamba {

struct Merge {
  std::int32_t rank = 0;
  std::int32_t id = 0;  // of the two together
};

struct TokenizerTables {
  bool nfc = false;
  PreTokenizer pre_tokenizer;
  AddedTokens exact;                         // found in the text as it comes
  AddedTokens normalized;                    // found after NFC; their contents are in NFC too
  std::array<std::int32_t, 256> byte_ids{};  // -1: none
  std::unordered_map<std::uint64_t, Merge> merges;            // of left << 32 | right
  bool ignore_merges = false;                                 // for words that are tokens
  std::unordered_map<std::string, std::int32_t> whole_words;  // bytes of the tokens that are words
  std::unordered_map<std::int32_t, std::string> bytes;        // of each id
  std::vector<std::int32_t> before;                           // special tokens in front of a text
  std::vector<std::int32_t> after;                            // and behind it
  std::int64_t vocab_size = 0;

  const std::string* bytes_of(std::int32_t id) const {
    const auto found = bytes.find(id);
    return found == bytes.end() ? nullptr : &found->second;
  }
  static std::uint64_t pair(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 |
           static_cast<std::uint32_t>(right);
  }
};

// Text in NFC (Unicode Standard Annex 15). `text` is UTF-8, given to ICU, which counts in 32 bits,
// in pieces of at most `most` bytes.
std::string to_nfc(const std::string& text, std::size_t most = std::size_t{1} << 30);

// Checks everything; where: the path.
TokenizerTables read_tokenizer(const std::string& path);

// The ids of one word (bytes) are appended: byte pair encoding (Sennrich, Haddow & Birch 2016).
void encode_word(const TokenizerTables& tables, std::string_view word,
                 std::vector<std::int32_t>& ids);

}  // namespace mamba
