// Text in NFC, in time that grows as the text does.
#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <vector>

#include <mamba/error.hpp>

#include "host/text/tokenizer_tables.hpp"
#include "host/text/utf8.hpp"

namespace mamba {
namespace {

void check(UErrorCode status) {
  if (U_FAILURE(status)) throw Error("Tokenizer", "ICU", "Unicode's data", u_errorName(status));
}

const icu::Normalizer2& composing() {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* nfc = icu::Normalizer2::getNFCInstance(status);
  check(status);
  return *nfc;
}

// The length of a beginning of `text` of at most `most` bytes that normalizing does not join with
// what follows it.
std::size_t normal_beginning(const icu::Normalizer2& nfc, std::string_view text, std::size_t most) {
  if (text.size() <= most) return text.size();
  for (std::size_t end = most; end > 0; --end) {
    const Utf8Character next = first_character(text.substr(end));
    if (next.kind == Utf8Character::whole &&
        nfc.hasBoundaryBefore(static_cast<UChar32>(next.code)) != 0) {
      return end;
    }
  }
  throw ArgumentError("Tokenizer::encode", "text",
                      fmt::format("a character without marks in {} bytes", most), "none");
}

bool is_nfc(const icu::Normalizer2& nfc, std::string_view text, std::size_t most) {
  if (text.size() > most) return false;  // it is not worth the cutting
  UErrorCode status = U_ZERO_ERROR;
  const UBool is = nfc.isNormalizedUTF8(
      icu::StringPiece(text.data(), static_cast<std::int32_t>(text.size())), status);
  check(status);
  return is != 0;
}

// ---- marks ------------------------------------------------------------------------------------

// A run of combining marks, decomposed. ICU puts each mark in its place by walking back over all
// marks that come later in the canonical order, which for alternating ones is quadratic; marks that
// are in order already it only appends.
class Marks {
 public:
  explicit Marks(const icu::Normalizer2& nfc) : nfc_(nfc) {}

  // False if `code` is no mark, not even once decomposed.
  bool take(char32_t code) {
    const auto c = static_cast<UChar32>(code);
    if (code < 0x80 || nfc_.hasBoundaryBefore(c) != 0) return false;
    icu::UnicodeString parts;
    if (nfc_.getDecomposition(c, parts) == 0) parts.setTo(c);
    if (nfc_.getCombiningClass(parts.char32At(0)) == 0) return false;
    for (std::int32_t i = 0; i < parts.length(); i = parts.moveIndex32(i, 1)) {
      const UChar32 part = parts.char32At(i);
      marks_.push_back({nfc_.getCombiningClass(part), part});
    }
    return true;
  }

  std::size_t count() const { return marks_.size(); }
  void clear() { marks_.clear(); }

  void append_in_order(std::string& to) {
    std::stable_sort(marks_.begin(), marks_.end(),
                     [](const Mark& a, const Mark& b) { return a.place < b.place; });
    icu::UnicodeString text;
    for (const Mark& mark : marks_) text.append(mark.code);
    text.toUTF8String(to);
  }

 private:
  struct Mark {
    int place;  // the canonical combining class
    UChar32 code;
  };

  const icu::Normalizer2& nfc_;
  std::vector<Mark> marks_;
};

// `text` (UTF-8) with long runs of marks put in order: canonically the same text.
std::string with_marks_in_order(const icu::Normalizer2& nfc, std::string_view text) {
  constexpr std::size_t many = 30;  // Unicode's Stream-Safe Text Format allows as many
  Marks marks(nfc);
  std::string result;
  std::size_t begin = 0;  // of the run of marks
  const auto end_run = [&](std::size_t end) {
    if (marks.count() > many) {
      marks.append_in_order(result);
    } else {
      result.append(text, begin, end - begin);
    }
    marks.clear();
  };
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Character next = first_character(text.substr(at));
    const bool mark = marks.take(next.code);
    if (!mark) {
      end_run(at);
      result.append(text, at, next.bytes);
      begin = at + next.bytes;
    }
    at += next.bytes;
  }
  end_run(at);
  return result;
}

}  // namespace

std::string to_nfc(const std::string& text, std::size_t most) {
  if (std::all_of(text.begin(), text.end(),
                  [](char c) { return static_cast<signed char>(c) >= 0; }))
    return text;  // ASCII
  const icu::Normalizer2& nfc = composing();
  std::string ordered = with_marks_in_order(nfc, text);
  if (is_nfc(nfc, ordered, most)) return ordered;
  std::string normal;
  icu::StringByteSink<std::string> sink(&normal);
  for (std::string_view rest = ordered; !rest.empty();) {
    const std::string_view piece = rest.substr(0, normal_beginning(nfc, rest, most));
    UErrorCode status = U_ZERO_ERROR;
    nfc.normalizeUTF8(0, icu::StringPiece(piece.data(), static_cast<std::int32_t>(piece.size())),
                      sink, nullptr, status);
    check(status);
    rest.remove_prefix(piece.size());
  }
  return normal;
}

}  // namespace mamba
