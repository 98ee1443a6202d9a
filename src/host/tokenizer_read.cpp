// A tokenizer.json, which may be careless, hostile or of another kind of tokenizer.
#include <fmt/format.h>

#include <limits>
#include <optional>

#include <mamba/error.hpp>

#include "host/input_file.hpp"
#include "host/json.hpp"
#include "host/tokenizer_tables.hpp"
#include "host/utf8.hpp"

namespace mamba {
namespace {

// GPT-2's alphabet: tokens are written in printable characters, one for each byte. Bytes that are
// printable in Latin-1 stand for themselves, the others follow from U+0100 on.
bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

class Alphabet {
 public:
  Alphabet() {
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const char32_t code = stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
      bytes_[code] = static_cast<char>(byte);
    }
  }

  // The bytes that `token` is written for; a token that is written otherwise is its own text.
  std::string bytes(const std::string& token) const {
    std::string result;
    for (std::string_view rest = token; !rest.empty();) {
      const Utf8Character next = first_character(rest);
      const auto found = bytes_.find(next.code);
      if (next.kind != Utf8Character::whole || found == bytes_.end()) return token;
      result.push_back(found->second);
      rest.remove_prefix(next.bytes);
    }
    return result;
  }

  // The byte, if the token is one character of the alphabet.
  std::optional<unsigned char> byte(const std::string& token) const {
    const Utf8Character first = first_character(token);
    if (first.kind != Utf8Character::whole || first.bytes != token.size()) return std::nullopt;
    const auto found = bytes_.find(first.code);
    if (found == bytes_.end()) return std::nullopt;
    return static_cast<unsigned char>(found->second);
  }

 private:
  std::unordered_map<char32_t, char> bytes_;
};

class Reader {
 public:
  explicit Reader(const std::string& path)
      : path_(path), file_(parse_json(InputFile("Tokenizer::load", path).text(), path)) {
    if (!file_.is_object()) refuse("JSON", "an object", describe(file_));
  }

  TokenizerTables read() {
    check_pipeline();
    check_model();
    read_vocab();
    read_merges();
    read_added_tokens();
    tables_.exact = AddedTokens(std::move(exact_));
    tables_.normalized = AddedTokens(std::move(normalized_));
    return std::move(tables_);
  }

 private:
  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(path_, name, expected, got);
  }

  static const Json& at(const Json& object, const char* key) {
    static const Json null;
    const Json* found = object.find(key);
    return found != nullptr ? *found : null;
  }

  // ---- the pipeline: what is not listed here would change ids ----

  void expect_type(const char* part, const std::string& type) const {
    const Json& got = at(at(file_, part), "type");
    if (got != type) refuse(std::string(part) + ".type", in_quotes(type), text_of(got));
  }

  static std::string text_of(const Json& value) {
    return value.is_null() ? "nothing" : describe(value);
  }

  // Absent, null or `value`.
  void expect_unless_absent(const std::string& part, const Json& object, const char* key,
                            const Json& value) const {
    const Json& got = at(object, key);
    if (!got.is_null() && got != value) refuse(part + "." + key, value.dump(), describe(got));
  }

  void check_pipeline() {
    if (!at(file_, "normalizer").is_null()) {
      expect_type("normalizer", "NFC");
      tables_.nfc = true;
    }
    expect_type("pre_tokenizer", "ByteLevel");
    const Json& words = at(file_, "pre_tokenizer");
    if (at(words, "add_prefix_space") != false) {
      refuse("pre_tokenizer.add_prefix_space", "false", text_of(at(words, "add_prefix_space")));
    }
    expect_unless_absent("pre_tokenizer", words, "use_regex", true);
    if (!at(file_, "post_processor").is_null()) expect_type("post_processor", "ByteLevel");
    expect_type("decoder", "ByteLevel");
  }

  void check_model() const {
    expect_type("model", "BPE");
    const Json& model = at(file_, "model");
    expect_unless_absent("model", model, "dropout", 0.0);
    expect_unless_absent("model", model, "continuing_subword_prefix", "");
    expect_unless_absent("model", model, "end_of_word_suffix", "");
    expect_unless_absent("model", model, "byte_fallback", false);
    expect_unless_absent("model", model, "ignore_merges", false);
    if (!at(model, "unk_token").is_null()) {
      refuse("model.unk_token", "null", describe(at(model, "unk_token")));
    }
    if (!at(model, "vocab").is_object()) {
      refuse("model.vocab", "an object", text_of(at(model, "vocab")));
    }
    if (!at(model, "merges").is_array()) {
      refuse("model.merges", "a list", text_of(at(model, "merges")));
    }
  }

  // ---- tokens ----

  std::int32_t id_of(const Json& value, const std::string& name) const {
    constexpr std::int32_t largest = std::numeric_limits<std::int32_t>::max() - 1;
    if (!value.is_count() || value.count() > std::uint64_t{largest}) {
      refuse(name, fmt::format("an id, 0 to {}", largest), text_of(value));
    }
    return static_cast<std::int32_t>(value.count());
  }

  void add_bytes(const std::string& token, std::string bytes, std::int32_t id) {
    if (!tables_.bytes.emplace(id, std::move(bytes)).second) {
      refuse(in_quotes(token), "an id of its own", fmt::format("{}, another token's", id));
    }
    tables_.vocab_size = std::max<std::int64_t>(tables_.vocab_size, std::int64_t{id} + 1);
  }

  void read_vocab() {
    tables_.byte_ids.fill(-1);
    for (const auto& [token, value] : at(at(file_, "model"), "vocab").members()) {
      if (token.empty()) refuse("model.vocab", "tokens of at least one character", "\"\"");
      const std::int32_t id = id_of(value, in_quotes(token));
      add_bytes(token, alphabet_.bytes(token), id);
      ids_.emplace(token, id);
      if (const auto byte = alphabet_.byte(token)) tables_.byte_ids[*byte] = id;
    }
    for (int byte = 0; byte < 0xF5; ++byte) {  // those that UTF-8 has
      if (byte == 0xC0 || byte == 0xC1 || tables_.byte_ids[static_cast<std::size_t>(byte)] >= 0) {
        continue;
      }
      refuse("model.vocab", "a token for every byte", fmt::format("none for {:#04x}", byte));
    }
  }

  std::int32_t merged_id(const std::string& token, std::size_t rank) const {
    const auto found = ids_.find(token);
    if (found == ids_.end()) {
      refuse(fmt::format("model.merges[{}]", rank), "tokens of model.vocab", in_quotes(token));
    }
    return found->second;
  }

  // ["a", "b"], or in older files "a b".
  std::pair<std::string, std::string> merge_of(const Json& value, std::size_t rank) const {
    if (value.is_array() && value.elements().size() == 2 && value.elements()[0].is_text() &&
        value.elements()[1].is_text()) {
      return {value.elements()[0].text(), value.elements()[1].text()};
    }
    if (value.is_text()) {
      const std::string& text = value.text();
      const std::size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        return {text.substr(0, space), text.substr(space + 1)};
      }
    }
    refuse(fmt::format("model.merges[{}]", rank), "two tokens", describe(value));
  }

  void read_merges() {
    const Json::Array& merges = at(at(file_, "model"), "merges").elements();
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const auto [left, right] = merge_of(merges[rank], rank);
      const Merge merge{static_cast<std::int32_t>(rank), merged_id(left + right, rank)};
      tables_.merges[TokenizerTables::pair(merged_id(left, rank), merged_id(right, rank))] = merge;
    }
  }

  // ---- added tokens ----

  bool flag(const Json& token, const std::string& name, const char* key) const {
    const Json& value = at(token, key);
    if (!value.is_boolean()) refuse(name + "." + key, "true or false", text_of(value));
    return value.boolean();
  }

  void read_added_tokens() {
    const Json& list = at(file_, "added_tokens");
    if (!list.is_null() && !list.is_array()) refuse("added_tokens", "a list", describe(list));
    if (list.is_null()) return;
    for (std::size_t i = 0; i < list.elements().size(); ++i) {
      read_added_token(list.elements()[i], fmt::format("added_tokens[{}]", i));
    }
  }

  void read_added_token(const Json& token, const std::string& name) {
    const Json& content = at(token, "content");
    if (!content.is_text() || content.text().empty()) {
      refuse(name + ".content", "text", text_of(content));
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (flag(token, name, key)) refuse(name + "." + key, "false", "true");
    }
    AddedToken added{content.text(), id_of(at(token, "id"), name + ".id")};
    const bool normalized = flag(token, name, "normalized");
    std::string text = normalized && tables_.nfc ? to_nfc(added.content) : added.content;
    const auto known = ids_.find(added.content);
    if (known == ids_.end()) {
      add_bytes(added.content, text, added.id);
      ids_.emplace(added.content, added.id);
    } else if (known->second != added.id) {
      refuse(name + ".id", fmt::format("{}, its id in model.vocab", known->second),
             fmt::format("{}", added.id));
    }
    added.content = std::move(text);
    (normalized ? normalized_ : exact_).push_back(std::move(added));
  }

  std::string path_;
  Json file_;
  Alphabet alphabet_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::vector<AddedToken> exact_;
  std::vector<AddedToken> normalized_;
  TokenizerTables tables_;
};

}  // namespace

TokenizerTables read_tokenizer(const std::string& path) { return Reader(path).read(); }

}  // namespace mamba
