#include <queue>

#include "host/text/tokenizer_tables.hpp"

namespace mamba {
namespace {

// A piece of the word, in a list that merging shortens.
struct Symbol {
  std::int32_t id;
  std::ptrdiff_t before;
  std::ptrdiff_t after;  // index of the neighbour; -1: none
};

struct Candidate {
  Merge merge;
  std::ptrdiff_t left;  // index of the left piece
  // A priority queue has its largest on top: the lowest rank, and the leftmost of equals.
  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.merge.rank != b.merge.rank ? a.merge.rank > b.merge.rank : a.left > b.left;
  }
};

class Merging {
 public:
  Merging(const TokenizerTables& tables, std::size_t bytes) : tables_(tables) {
    pieces_.reserve(bytes);
  }

  void append(std::int32_t id) {
    const auto last = static_cast<std::ptrdiff_t>(pieces_.size()) - 1;
    if (last >= 0) at(last).after = last + 1;
    pieces_.push_back({id, last, -1});
    if (last >= 0) consider(last);
  }

  void run() {
    while (!candidates_.empty()) {
      const Candidate best = candidates_.top();
      candidates_.pop();
      Symbol& left = at(best.left);
      // Merging may have taken either piece away since; what counts is what the two make now.
      const Merge* merge = merge_of(best.left);
      if (merge == nullptr || merge->id != best.merge.id) continue;
      Symbol& right = at(left.after);
      left.id = best.merge.id;
      left.after = right.after;
      right.id = gone;
      right.after = -1;
      if (left.after >= 0) at(left.after).before = best.left;
      if (left.before >= 0) consider(left.before);
      consider(best.left);
    }
  }

  void append_to(std::vector<std::int32_t>& ids) const {
    for (const Symbol& piece : pieces_) {
      if (piece.id != gone) ids.push_back(piece.id);
    }
  }

 private:
  static constexpr std::int32_t gone = -1;

  Symbol& at(std::ptrdiff_t i) { return pieces_[static_cast<std::size_t>(i)]; }

  const Merge* merge_of(std::ptrdiff_t left) {
    const Symbol& piece = at(left);
    if (piece.id == gone || piece.after < 0) return nullptr;
    const auto found = tables_.merges.find(TokenizerTables::pair(piece.id, at(piece.after).id));
    return found == tables_.merges.end() ? nullptr : &found->second;
  }

  void consider(std::ptrdiff_t left) {
    if (const Merge* merge = merge_of(left)) candidates_.push({*merge, left});
  }

  const TokenizerTables& tables_;
  std::vector<Symbol> pieces_;
  std::priority_queue<Candidate> candidates_;
};

}  // namespace

void encode_word(const TokenizerTables& tables, std::string_view word,
                 std::vector<std::int32_t>& ids) {
  if (tables.ignore_merges) {
    const auto whole = tables.whole_words.find(std::string(word));
    if (whole != tables.whole_words.end()) return ids.push_back(whole->second);
  }
  Merging merging(tables, word.size());
  for (const char c : word) {
    const std::int32_t id = tables.byte_ids[static_cast<unsigned char>(c)];
    if (id >= 0) merging.append(id);
  }
  merging.run();
  merging.append_to(ids);
}

}  // namespace mamba
