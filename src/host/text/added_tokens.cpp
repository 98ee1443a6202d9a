#include "host/text/added_tokens.hpp"

#include <algorithm>

namespace mamba {
namespace {

std::size_t index(std::int32_t i) { return static_cast<std::size_t>(i); }

// The tokens of a node, and its length in bytes.
struct Range {
  std::int32_t begin;
  std::int32_t end;
  std::int32_t length;
};

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  if (tokens_.empty()) return;
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const AddedToken& a, const AddedToken& b) {
    const auto below = [](char x, char y) {
      return static_cast<unsigned char>(x) < static_cast<unsigned char>(y);
    };
    return std::lexicographical_compare(a.content.rbegin(), a.content.rend(), b.content.rbegin(),
                                        b.content.rend(), below);
  });
  std::vector<Range> ranges{{0, static_cast<std::int32_t>(tokens_.size()), 0}};
  nodes_.emplace_back();
  // A node comes after all shorter ones, so what its parent and its `shorter` say is known.
  for (std::size_t at = 0; at < nodes_.size(); ++at) {
    auto [begin, end, length] = ranges[at];
    const auto ends = [this](std::int32_t token, std::int32_t bytes) {
      return tokens_[index(token)].content.size() == index(bytes);
    };
    const auto byte_of = [this, length = length](std::int32_t token) {
      return static_cast<unsigned char>(*(tokens_[index(token)].content.rbegin() + length));
    };
    while (begin < end && ends(begin, length)) ++begin;
    nodes_[at].children = static_cast<std::int32_t>(nodes_.size());
    while (begin < end) {
      Node child;
      child.byte = byte_of(begin);
      if (at == 0) from_root_[child.byte] = static_cast<std::int32_t>(nodes_.size());
      if (at > 0) child.shorter = next(nodes_[at].shorter, child.byte);
      child.token = ends(begin, length + 1) ? begin : nodes_[index(child.shorter)].token;
      const std::int32_t first = begin;
      while (begin < end && byte_of(begin) == child.byte) ++begin;
      nodes_.push_back(child);
      ranges.push_back({first, begin, length + 1});
      ++nodes_[at].child_count;
    }
  }
}

std::int32_t AddedTokens::child(const Node& node, unsigned char byte) const {
  const auto first = nodes_.begin() + node.children;
  const auto last = first + node.child_count;
  const auto found = std::lower_bound(
      first, last, byte, [](const Node& child, unsigned char b) { return child.byte < b; });
  if (found == last || found->byte != byte) return -1;
  return static_cast<std::int32_t>(found - nodes_.begin());
}

std::int32_t AddedTokens::next(std::int32_t node, unsigned char byte) const {
  for (; node != 0; node = nodes_[index(node)].shorter) {
    const std::int32_t longer = child(nodes_[index(node)], byte);
    if (longer >= 0) return longer;
  }
  return from_root_[byte];
}

std::vector<AddedTokens::Match> AddedTokens::find(std::string_view text) const {
  std::vector<Match> found;  // at every place where one begins, from the last place to the first
  if (tokens_.empty()) return found;
  std::int32_t node = 0;
  for (std::size_t at = text.size(); at-- > 0;) {
    node = next(node, static_cast<unsigned char>(text[at]));
    const std::int32_t token = nodes_[index(node)].token;
    if (token < 0) continue;
    const AddedToken& longest = tokens_[index(token)];
    found.push_back({at, longest.content.size(), longest.id});
  }
  std::reverse(found.begin(), found.end());
  std::size_t end = 0;
  const auto overlaps = [&end](const Match& match) {
    if (match.begin < end) return true;
    end = match.begin + match.bytes;
    return false;
  };
  found.erase(std::remove_if(found.begin(), found.end(), overlaps), found.end());
  return found;
}

}  // namespace mamba
