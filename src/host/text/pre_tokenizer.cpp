#include "host/text/pre_tokenizer.hpp"

#include <algorithm>

#include "host/text/alphabet.hpp"
#include "host/text/utf8.hpp"
#include "host/text/words.hpp"

namespace mamba {
namespace {

using Pieces = std::vector<Piece>;

// A part of a text that a step looks for, or what lies between two of those.
struct Part {
  Piece piece;
  bool match;
};
using Parts = std::vector<Part>;

// ---- what a step looks for ----

template <class Is>
Pieces characters(std::string_view text, Is is) {
  Pieces found;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Character next = first_character(text.substr(at));
    if (is(next.code)) found.push_back({at, at + next.bytes});
    at += next.bytes;
  }
  return found;
}

Pieces words(std::string_view text) {
  Pieces found;
  Words words(text);
  std::size_t at = 0;
  for (std::string_view word = words.next(); !word.empty(); word = words.next()) {
    found.push_back({at, at + word.size()});
    at += word.size();
  }
  return found;
}

Pieces occurrences(std::string_view text, const std::string& of) {
  Pieces found;
  for (std::size_t at = text.find(of); at != std::string_view::npos;
       at = text.find(of, at + of.size())) {
    found.push_back({at, at + of.size()});
  }
  return found;
}

Pieces matches(const Cut& step, std::string_view text, Patience& patience) {
  switch (step.at) {
    case Cut::At::words:
      return words(text);
    case Cut::At::nothing:
      break;
    case Cut::At::numbers:
      return characters(text, [](char32_t c) { return class_of(c) == CharacterClass::number; });
    case Cut::At::punctuation:
      return characters(text, is_punctuation);
    case Cut::At::text:
      return occurrences(text, step.text);
    case Cut::At::expression:
      return step.expression->matches(text, patience);
  }
  return {};
}

// ---- what becomes of it ----

Parts parts(const Cut& step, std::string_view text, Patience& patience) {
  Parts all;
  std::size_t end = 0;
  for (const Piece& match : matches(step, text, patience)) {
    if (end < match.begin) all.push_back({{end, match.begin}, step.invert});
    all.push_back({match, !step.invert});
    end = match.end;
  }
  if (end < text.size()) all.push_back({{end, text.size()}, step.invert});
  return all;
}

// Each part that joins(part, the one before) becomes one with it.
template <class Joins>
Pieces joined(const Parts& all, Joins joins) {
  Pieces pieces;
  bool previous = false;
  for (const Part& part : all) {
    if (!pieces.empty() && joins(part.match, previous)) {
      pieces.back().end = part.piece.end;
    } else {
      pieces.push_back(part.piece);
    }
    previous = part.match;
  }
  return pieces;
}

// A match becomes one with the part after it, unless that is a match too.
Pieces joined_to_next(const Parts& all) {
  Pieces pieces;
  bool next = false;
  for (auto part = all.rbegin(); part != all.rend(); ++part) {
    if (!pieces.empty() && part->match && !next) {
      pieces.back().begin = part->piece.begin;
    } else {
      pieces.push_back(part->piece);
    }
    next = part->match;
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

Pieces cut(const Cut& step, std::string_view text, Patience& patience) {
  const Parts all = parts(step, text, patience);
  Pieces pieces;
  switch (step.matches) {
    case Cut::Matches::removed:
      for (const Part& part : all) {
        if (!part.match) pieces.push_back(part.piece);
      }
      break;
    case Cut::Matches::isolated:
      pieces = joined(all, [](bool, bool) { return false; });
      break;
    case Cut::Matches::merged_with_previous:
      pieces = joined(all, [](bool match, bool previous) { return match && !previous; });
      break;
    case Cut::Matches::merged_with_next:
      pieces = joined_to_next(all);
      break;
    case Cut::Matches::contiguous:
      pieces = joined(all, [](bool match, bool previous) { return match == previous; });
      break;
  }
  return pieces;
}

// ---- steps ----

// A text on its way through the steps.
class Pretokenized {
 public:
  Pretokenized(std::string_view text, Patience& patience)
      : text_(text), pieces_{{0, text.size()}}, patience_(patience) {}

  void apply(const Cut& step, bool last) {
    if (step.blank_in_front) put_blanks_in_front();
    Pieces smaller;
    for (const Piece& piece : pieces_) {
      for (const Piece& part : cut(step, in(piece), patience_)) {
        if (part.begin == part.end) continue;
        smaller.push_back({piece.begin + part.begin, piece.begin + part.end});
      }
    }
    pieces_ = std::move(smaller);
    if (step.into_alphabet && !last) write_in_alphabet();
  }

  void each(const std::function<void(std::string_view)>& word) const {
    for (const Piece& piece : pieces_) {
      if (in_alphabet_) {
        word(Alphabet::get().read(in(piece)).value());
      } else {
        word(in(piece));
      }
    }
  }

 private:
  std::string_view in(const Piece& piece) const {
    return text_.substr(piece.begin, piece.end - piece.begin);
  }

  // Each piece as write(piece, text) appends it to another text.
  template <class Write>
  void rewrite(Write write) {
    std::string text;
    for (Piece& piece : pieces_) {
      const std::size_t begin = text.size();
      write(in(piece), text);
      piece = {begin, text.size()};
    }
    own_ = std::move(text);
    text_ = own_;
  }

  void put_blanks_in_front() {
    rewrite([](std::string_view piece, std::string& text) {
      if (piece[0] != ' ') text += ' ';
      text += piece;
    });
  }

  void write_in_alphabet() {
    rewrite([](std::string_view piece, std::string& text) { Alphabet::get().write(piece, text); });
    in_alphabet_ = true;
  }

  std::string own_;  // once it is no longer the text as it came
  std::string_view text_;
  Pieces pieces_;  // in order, none of them empty
  bool in_alphabet_ = false;
  Patience& patience_;
};

}  // namespace

PreTokenizer::PreTokenizer(std::vector<Cut> steps)
    : steps_(std::move(steps)),
      words_alone_(steps_.size() == 1 && steps_[0].at == Cut::At::words &&
                   !steps_[0].blank_in_front) {}

void PreTokenizer::each_word(std::string_view text, Patience& patience,
                             const std::function<void(std::string_view)>& word) const {
  if (text.empty()) return;
  if (words_alone_) {
    Words words(text);
    for (std::string_view next = words.next(); !next.empty(); next = words.next()) word(next);
    return;
  }
  Pretokenized pieces(text, patience);
  for (const Cut& step : steps_) pieces.apply(step, &step == &steps_.back());
  pieces.each(word);
}

}  // namespace mamba
