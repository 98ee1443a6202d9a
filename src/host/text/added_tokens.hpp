// Tokens that are found in a text before anything else.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mamba {

struct AddedToken {
  std::string content;  // not empty
  std::int32_t id = 0;
};

// Finds tokens in a text, leftmost first and the longest of those, in time linear in the text: an
// automaton of Aho and Corasick (1975) that reads the text from its end, so that the longest token
// of those that begin at a place is known there.
class AddedTokens {
 public:
  struct Match {
    std::size_t begin;  // in bytes
    std::size_t bytes;
    std::int32_t id;
  };

  AddedTokens() = default;
  // Of tokens of equal content the first one counts.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  // Those in `text` in order, none overlapping another.
  std::vector<Match> find(std::string_view text) const;

 private:
  // A part of a token up to the token's end. Its children have one byte more in front; they lie
  // beside each other, in the order of that byte.
  struct Node {
    std::int32_t shorter = 0;  // the longest other node that this part begins with; 0: the root
    std::int32_t token = -1;   // the longest token that this part begins with; -1: none
    std::int32_t children = 0;
    std::uint16_t child_count = 0;
    unsigned char byte = 0;  // the first one
  };

  std::int32_t child(const Node& node, unsigned char byte) const;
  std::int32_t next(std::int32_t node, unsigned char byte) const;

  std::vector<AddedToken> tokens_;  // in the order of their bytes from the last to the first
  std::vector<Node> nodes_;         // the root, then by length
  std::array<std::int32_t, 256> from_root_{};  // 0: no token ends with that byte
};

}  // namespace mamba
