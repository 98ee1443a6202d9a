// A tokenizer.json, which may be careless, hostile or of another kind of tokenizer.
#include <fmt/format.h>

#include <limits>
#include <optional>

#include "host/core/json.hpp"
#include "host/files/input_file.hpp"
#include "host/text/alphabet.hpp"
#include "host/text/tokenizer_fields.hpp"
#include "host/text/tokenizer_tables.hpp"

namespace mamba {
namespace {

class Reader {
 public:
  explicit Reader(const std::string& path)
      : fields_(path), file_(parse_json(InputFile("Tokenizer::load", path).text(), path)) {
    if (!file_.is_object()) fields_.refuse_value("JSON", "an object", file_);
  }

  TokenizerTables read() {
    read_normalizer(at(file_, "normalizer"), "normalizer");
    tables_.pre_tokenizer = read_pre_tokenizer(at(file_, "pre_tokenizer"), fields_.path());
    if (at(at(file_, "decoder"), "type") != "ByteLevel") {
      fields_.refuse_value("decoder.type", in_quotes("ByteLevel"),
                           at(at(file_, "decoder"), "type"));
    }
    check_model();
    read_vocab();
    read_merges();
    read_added_tokens();
    read_post_processor(at(file_, "post_processor"), "post_processor");
    tables_.exact = AddedTokens(std::move(exact_));
    tables_.normalized = AddedTokens(std::move(normalized_));
    return std::move(tables_);
  }

 private:
  static const Json& at(const Json& object, const char* key) {
    return TokenizerFields::at(object, key);
  }

  // ---- the pipeline: what is not listed here would change ids ----

  void read_normalizer(const Json& value, const std::string& name) {
    if (value.is_null()) return;
    const Json& type = at(value, "type");
    if (type == "Sequence") {
      const Json::Array& list = fields_.list(value, name, "normalizers");
      for (std::size_t i = 0; i < list.size(); ++i) {
        read_normalizer(list[i], fmt::format("{}.normalizers[{}]", name, i));
      }
    } else if (type == "NFC") {
      tables_.nfc = true;
    } else {
      fields_.refuse_value(name + ".type", "NFC or a Sequence of it", type);
    }
  }

  void check_model() {
    const Json& model = at(file_, "model");
    const Json& type = at(model, "type");
    if (!type.is_null() && type != "BPE")
      fields_.refuse_value("model.type", in_quotes("BPE"), type);
    fields_.expect_unless_absent(model, "model", "dropout", 0.0);
    fields_.expect_unless_absent(model, "model", "continuing_subword_prefix", "");
    fields_.expect_unless_absent(model, "model", "end_of_word_suffix", "");
    fields_.expect_unless_absent(model, "model", "byte_fallback", false);
    if (!at(model, "vocab").is_object()) {
      fields_.refuse_value("model.vocab", "an object", at(model, "vocab"));
    }
    fields_.list(model, "model", "merges");
    tables_.ignore_merges = fields_.flag(model, "model", "ignore_merges", false);
  }

  // ---- what is put around a text ----

  void read_post_processor(const Json& value, const std::string& name) {
    if (value.is_null()) return;
    const Json& type = at(value, "type");
    if (type == "Sequence") {
      const Json::Array& list = fields_.list(value, name, "processors");
      for (std::size_t i = 0; i < list.size(); ++i) {
        read_post_processor(list[i], fmt::format("{}.processors[{}]", name, i));
      }
    } else if (type == "TemplateProcessing") {
      read_template(value, name);
    } else if (type != "ByteLevel") {  // that one changes no ids
      fields_.refuse_value(name + ".type", "ByteLevel, TemplateProcessing or a Sequence of them",
                           type);
    }
  }

  void read_template(const Json& value, const std::string& name) {
    if (has_template_) fields_.refuse(name + ".type", "one TemplateProcessing", "another");
    has_template_ = true;
    bool after = false;
    const Json::Array& single = fields_.list(value, name, "single");
    for (std::size_t i = 0; i < single.size(); ++i) {
      const std::string item = fmt::format("{}.single[{}]", name, i);
      const Json& special = at(single[i], "SpecialToken");
      if (!special.is_null()) {
        append_special(value, name, at(special, "id"), item,
                       after ? tables_.after : tables_.before);
      } else if (at(at(single[i], "Sequence"), "id") == "A" && !after) {
        after = true;
      } else {
        fields_.refuse_value(item, "a SpecialToken or, once, the Sequence A", single[i]);
      }
    }
    if (!after) fields_.refuse(name + ".single", "the Sequence A", "none");
  }

  void append_special(const Json& value, const std::string& name, const Json& key,
                      const std::string& item, std::vector<std::int32_t>& to) const {
    const Json& all = at(value, "special_tokens");
    const Json* token = key.is_text() ? all.find(key.text()) : nullptr;
    if (token == nullptr) {
      fields_.refuse_value(item + ".SpecialToken.id", "one of " + name + ".special_tokens", key);
    }
    const std::string ids = fmt::format("{}.special_tokens[{}]", name, in_quotes(key.text()));
    for (const Json& number : fields_.list(*token, ids, "ids")) {
      const std::int32_t id = id_of(number, ids + ".ids");
      if (tables_.bytes_of(id) == nullptr) {
        fields_.refuse_value(ids + ".ids", "ids of tokens", number);
      }
      to.push_back(id);
    }
  }

  // ---- tokens ----

  std::int32_t id_of(const Json& value, const std::string& name) const {
    constexpr std::int32_t largest = std::numeric_limits<std::int32_t>::max() - 1;
    if (!value.is_count() || value.count() > std::uint64_t{largest}) {
      fields_.refuse_value(name, fmt::format("an id, 0 to {}", largest), value);
    }
    return static_cast<std::int32_t>(value.count());
  }

  void add_bytes(const std::string& token, std::string bytes, std::int32_t id) {
    if (!tables_.bytes.emplace(id, std::move(bytes)).second) {
      fields_.refuse(in_quotes(token), "an id of its own", fmt::format("{}, another token's", id));
    }
    tables_.vocab_size = std::max<std::int64_t>(tables_.vocab_size, std::int64_t{id} + 1);
  }

  void read_vocab() {
    tables_.byte_ids.fill(-1);
    for (const auto& [token, value] : at(at(file_, "model"), "vocab").members()) {
      if (token.empty()) {
        fields_.refuse("model.vocab", "tokens of at least one character", "\"\"");
      }
      const std::int32_t id = id_of(value, in_quotes(token));
      ids_.emplace(token, id);
      // A token that is not written in the alphabet is its own text, and no word is.
      std::optional<std::string> bytes = Alphabet::get().read(token);
      if (bytes && bytes->size() == 1) {
        tables_.byte_ids[static_cast<unsigned char>(bytes->front())] = id;
      }
      if (bytes && tables_.ignore_merges) tables_.whole_words.emplace(*bytes, id);
      add_bytes(token, std::move(bytes).value_or(token), id);
    }
    check_bytes();
  }

  // A byte that has no token gives no id, as in Falcon, which has seen no U+0003. One of printable
  // ASCII shows that something is wrong.
  void check_bytes() const {
    bool all = true;
    for (int byte = 0; byte < 0xF5; ++byte) {  // those that UTF-8 has
      if (byte == 0xC0 || byte == 0xC1 || tables_.byte_ids[static_cast<std::size_t>(byte)] >= 0) {
        continue;
      }
      all = false;
      if (byte < ' ' || byte > '~') continue;
      fields_.refuse("model.vocab", "a token for every printable character of ASCII",
                     fmt::format("none for {:#04x}", byte));
    }
    const Json& unknown = at(at(file_, "model"), "unk_token");
    if (!all && !unknown.is_null()) {
      fields_.refuse_value("model.unk_token", "null, or a token for every byte", unknown);
    }
  }

  std::int32_t merged_id(const std::string& token, std::size_t rank) const {
    const auto found = ids_.find(token);
    if (found == ids_.end()) {
      fields_.refuse(fmt::format("model.merges[{}]", rank), "tokens of model.vocab",
                     in_quotes(token));
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
    fields_.refuse_value(fmt::format("model.merges[{}]", rank), "two tokens", value);
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

  void read_added_tokens() {
    const Json& list = at(file_, "added_tokens");
    if (!list.is_null() && !list.is_array()) fields_.refuse_value("added_tokens", "a list", list);
    if (list.is_null()) return;
    for (std::size_t i = 0; i < list.elements().size(); ++i) {
      read_added_token(list.elements()[i], fmt::format("added_tokens[{}]", i));
    }
  }

  void read_added_token(const Json& token, const std::string& name) {
    const Json& content = at(token, "content");
    if (!content.is_text() || content.text().empty()) {
      fields_.refuse_value(name + ".content", "text", content);
    }
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (fields_.flag(token, name, key)) fields_.refuse(name + "." + key, "false", "true");
    }
    AddedToken added{content.text(), id_of(at(token, "id"), name + ".id")};
    const bool normalized = fields_.flag(token, name, "normalized");
    std::string text = normalized && tables_.nfc ? to_nfc(added.content) : added.content;
    const auto known = ids_.find(added.content);
    if (known == ids_.end()) {
      add_bytes(added.content, text, added.id);
      ids_.emplace(added.content, added.id);
    } else if (known->second != added.id) {
      fields_.refuse(name + ".id", fmt::format("{}, its id in model.vocab", known->second),
                     fmt::format("{}", added.id));
    }
    added.content = std::move(text);
    (normalized ? normalized_ : exact_).push_back(std::move(added));
  }

  TokenizerFields fields_;
  Json file_;
  std::unordered_map<std::string, std::int32_t> ids_;
  bool has_template_ = false;
  std::vector<AddedToken> exact_;
  std::vector<AddedToken> normalized_;
  TokenizerTables tables_;
};

}  // namespace

TokenizerTables read_tokenizer(const std::string& path) { return Reader(path).read(); }

}  // namespace mamba
