#include <mamba/tokenizer.hpp>

#include <fmt/format.h>
#include <unicode/uchar.h>

#include <filesystem>
#include <system_error>

#include <mamba/error.hpp>

#include "host/tokenizer_tables.hpp"
#include "host/utf8.hpp"

namespace mamba {

// ---- Unicode ----------------------------------------------------------------------------------

namespace {

enum class Class { letter, number, space, other };

Class class_of(char32_t code) {
  const auto c = static_cast<UChar32>(code);
  const auto category = U_GET_GC_MASK(c);
  if ((category & U_GC_L_MASK) != 0) return Class::letter;
  if ((category & U_GC_N_MASK) != 0) return Class::number;
  return u_isUWhiteSpace(c) != 0 ? Class::space : Class::other;
}

// ---- words ------------------------------------------------------------------------------------

// Cuts a text (UTF-8) as GPT-2's pattern does:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
class Words {
 public:
  explicit Words(std::string_view text) : text_(text) {}

  // The next word; empty at the end.
  std::string_view next() {
    const std::size_t length = this->length();
    const std::string_view word = text_.substr(0, length);
    text_.remove_prefix(length);
    return word;
  }

 private:
  std::size_t length() const {
    if (text_.empty()) return 0;
    for (const std::string_view contraction : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
      if (text_.compare(0, contraction.size(), contraction) == 0) return contraction.size();
    }
    const std::size_t blank = text_[0] == ' ' ? 1 : 0;
    if (blank < text_.size()) {
      const Class kind = class_at(blank);
      if (kind != Class::space) return run(blank, kind);
    }
    return spaces();
  }

  // All blanks, but the last one of several if a word follows: it may begin that word.
  std::size_t spaces() const {
    const std::size_t end = run(0, Class::space);
    if (end == text_.size()) return end;
    std::size_t last = end - 1;
    while ((static_cast<unsigned char>(text_[last]) & 0xC0) == 0x80) --last;
    return last == 0 ? end : last;
  }

  Class class_at(std::size_t at) const { return class_of(first_character(text_.substr(at)).code); }

  std::size_t run(std::size_t at, Class kind) const {
    while (at < text_.size()) {
      const Utf8Character next = first_character(text_.substr(at));
      if (class_of(next.code) != kind) break;
      at += next.bytes;
    }
    return at;
  }

  std::string_view text_;
};

void encode_words(const TokenizerTables& tables, std::string_view text,
                  std::vector<std::int32_t>& ids) {
  Words words(text);
  for (std::string_view word = words.next(); !word.empty(); word = words.next()) {
    encode_word(tables, word, ids);
  }
}

// Calls rest(piece) for what lies between the added tokens in `text`, whose ids are appended.
template <class Rest>
void split(const AddedTokens& tokens, std::string_view text, std::vector<std::int32_t>& ids,
           Rest rest) {
  std::size_t begin = 0;
  for (const AddedTokens::Match& token : tokens.find(text)) {
    if (begin < token.begin) rest(text.substr(begin, token.begin - begin));
    ids.push_back(token.id);
    begin = token.begin + token.bytes;
  }
  if (begin < text.size()) rest(text.substr(begin));
}

}  // namespace

// ---- Tokenizer --------------------------------------------------------------------------------

Tokenizer Tokenizer::load(const std::string& path) {
  Tokenizer tokenizer;
  std::error_code error;  // what the system will not say of it, opening it will
  const bool folder = std::filesystem::is_directory(path, error);
  tokenizer.tables_ = std::make_shared<const TokenizerTables>(
      read_tokenizer(folder ? (std::filesystem::path(path) / "tokenizer.json").string() : path));
  return tokenizer;
}

std::int64_t Tokenizer::vocab_size() const { return tables_ ? tables_->vocab_size : 256; }

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  if (!tables_) {
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  TextStream whole;
  std::string valid = whole.push(text);
  valid += whole.finish();
  split(tables_->exact, valid, ids, [&](std::string_view piece) {
    const std::string normal = tables_->nfc ? to_nfc(std::string(piece)) : std::string(piece);
    split(tables_->normalized, normal, ids,
          [&](std::string_view words) { encode_words(*tables_, words, ids); });
  });
  return ids;
}

std::string Tokenizer::decode(const std::vector<std::int32_t>& ids) const {
  std::string text;
  for (const std::int32_t id : ids) {
    if (id < 0) {
      throw ArgumentError("Tokenizer::decode", "ids", "at least 0", fmt::format("{}", id));
    }
    if (!tables_ && id < 256) {
      text.push_back(static_cast<char>(id));
      continue;
    }
    const std::string* bytes = tables_ ? tables_->bytes_of(id) : nullptr;
    text += bytes != nullptr ? *bytes : replacement_character;
  }
  return text;
}

// ---- TextStream -------------------------------------------------------------------------------

std::string TextStream::push(std::string_view bytes) {
  std::string joined;
  if (!held_.empty()) {
    joined = held_;
    joined += bytes;
    bytes = joined;
  }
  std::string text;
  const std::size_t taken = append_whole(bytes, text);
  held_.assign(bytes.substr(taken));  // at most 3 bytes take no memory
  return text;
}

std::string TextStream::finish() {
  const bool incomplete = !held_.empty();
  held_.clear();
  return incomplete ? replacement_character : "";
}

}  // namespace mamba
