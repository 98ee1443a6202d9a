#include <mamba/tokenizer.hpp>

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/text/tokenizer_tables.hpp"
#include "host/text/utf8.hpp"

namespace mamba {

namespace {

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

namespace {

// The file that `path` names.
std::string tokenizer_file(const std::string& path) {
  std::error_code error;  // what the system will not say of it, opening it will
  if (!std::filesystem::is_directory(path, error)) return path;
  const std::filesystem::path folder = path;
  const auto has = [&](const char* name) { return std::filesystem::exists(folder / name, error); };
  if (!has("tokenizer.json") && has("vocab.json") && has("merges.txt")) {
    throw FormatError(
        "Tokenizer::load", path, "tokenizer.json",
        fmt::format(
            "vocab.json and merges.txt, which do not say how a text is cut (Python's "
            "transformers make one: AutoTokenizer.from_pretrained({0}).save_pretrained({0}))",
            in_quotes(path)));
  }
  return (folder / "tokenizer.json").string();
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  Tokenizer tokenizer;
  tokenizer.tables_ = std::make_shared<const TokenizerTables>(read_tokenizer(tokenizer_file(path)));
  return tokenizer;
}

std::int64_t Tokenizer::vocab_size() const { return tables_ ? tables_->vocab_size : 256; }

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool special_tokens) const {
  std::vector<std::int32_t> ids;
  if (!tables_) {
    ids.reserve(text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  TextStream whole;
  std::string valid = whole.push(text);
  valid += whole.finish();
  Patience patience(valid.size());
  if (special_tokens) ids = tables_->before;
  split(tables_->exact, valid, ids, [&](std::string_view piece) {
    const std::string normal = tables_->nfc ? to_nfc(std::string(piece)) : std::string(piece);
    split(tables_->normalized, normal, ids, [&](std::string_view words) {
      tables_->pre_tokenizer.each_word(
          words, patience, [&](std::string_view word) { encode_word(*tables_, word, ids); });
    });
  });
  if (special_tokens) ids.insert(ids.end(), tables_->after.begin(), tables_->after.end());
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
