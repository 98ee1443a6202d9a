#include <fmt/format.h>

#include <utility>

#include "host/text/pre_tokenizer.hpp"
#include "host/text/tokenizer_fields.hpp"

namespace mamba {
namespace {

constexpr std::size_t most_steps = 100;  // each goes through the whole text

class Reader {
 public:
  explicit Reader(const std::string& path) : fields_(path) {}

  std::vector<Cut> read(const Json& value) {
    step(value, name_);
    if (!in_alphabet_) fields_.refuse(name_, "ByteLevel, or a Sequence with it", "none");
    return std::move(steps_);
  }

 private:
  void step(const Json& value, const std::string& name) {
    const Json& type = TokenizerFields::at(value, "type");
    if (type == "Sequence") return sequence(value, name);
    if (steps_.size() == most_steps) {
      fields_.refuse(name_, fmt::format("at most {} steps", most_steps), "more");
    }
    if (type == "ByteLevel") return byte_level(value, name);
    if (type == "Split") return split(value, name);
    if (type == "Digits") return digits(value, name);
    if (type == "Punctuation") return punctuation(value, name);
    fields_.refuse_value(name + ".type",
                         "ByteLevel, Split, Digits, Punctuation or a Sequence of them", type);
  }

  void sequence(const Json& value, const std::string& name) {
    const Json::Array& list = fields_.list(value, name, "pretokenizers");
    for (std::size_t i = 0; i < list.size(); ++i) {
      step(list[i], fmt::format("{}.pretokenizers[{}]", name, i));
    }
  }

  void byte_level(const Json& value, const std::string& name) {
    if (in_alphabet_) fields_.refuse(name + ".type", "one ByteLevel", "another");
    in_alphabet_ = true;
    Cut cut;
    cut.into_alphabet = true;
    cut.blank_in_front = fields_.flag(value, name, "add_prefix_space");
    if (fields_.flag(value, name, "use_regex", true)) cut.at = Cut::At::words;
    steps_.push_back(std::move(cut));
  }

  void digits(const Json& value, const std::string& name) {
    Cut cut;
    cut.at = Cut::At::numbers;
    const bool single = fields_.flag(value, name, "individual_digits", false);
    cut.matches = single ? Cut::Matches::isolated : Cut::Matches::contiguous;
    steps_.push_back(std::move(cut));
  }

  void punctuation(const Json& value, const std::string& name) {
    Cut cut;
    cut.at = Cut::At::punctuation;
    if (value.contains("behavior")) cut.matches = behavior(value, name);
    steps_.push_back(std::move(cut));
  }

  void split(const Json& value, const std::string& name) {
    Cut cut;
    cut.matches = behavior(value, name);
    cut.invert = fields_.flag(value, name, "invert", false);
    const Json& pattern = TokenizerFields::at(value, "pattern");
    const Json& text = TokenizerFields::at(pattern, "String");
    const Json& expression = TokenizerFields::at(pattern, "Regex");
    if (text.is_text() && !text.text().empty()) {
      cut.at = Cut::At::text;
      cut.text = text.text();
    } else if (expression.is_text()) {
      cut.at = Cut::At::expression;
      cut.expression.emplace(expression.text(), fields_.path(), name + ".pattern.Regex");
    } else {
      fields_.refuse_value(name + ".pattern", "a String or Regex with text", pattern);
    }
    steps_.push_back(std::move(cut));
  }

  Cut::Matches behavior(const Json& value, const std::string& name) const {
    const Json& got = TokenizerFields::at(value, "behavior");
    const std::pair<const char*, Cut::Matches> behaviors[] = {
        {"Removed", Cut::Matches::removed},
        {"Isolated", Cut::Matches::isolated},
        {"MergedWithPrevious", Cut::Matches::merged_with_previous},
        {"MergedWithNext", Cut::Matches::merged_with_next},
        {"Contiguous", Cut::Matches::contiguous}};
    for (const auto& [known, matches] : behaviors) {
      if (got == known) return matches;
    }
    fields_.refuse_value(name + ".behavior",
                         "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
                         got);
  }

  const std::string name_ = "pre_tokenizer";
  TokenizerFields fields_;
  std::vector<Cut> steps_;
  bool in_alphabet_ = false;
};

}  // namespace

PreTokenizer read_pre_tokenizer(const Json& value, const std::string& where) {
  return PreTokenizer(Reader(where).read(value));
}

}  // namespace mamba
