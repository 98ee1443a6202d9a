#include "host/core/json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include <mamba/error.hpp>

namespace mamba {
namespace {

constexpr std::size_t deepest = 64;

// What Python's json writes for numbers that JSON has no words for.
struct Word {
  std::string_view text;
  double value;
};
constexpr Word words[] = {{"NaN", std::numeric_limits<double>::quiet_NaN()},
                          {"Infinity", std::numeric_limits<double>::infinity()},
                          {"-Infinity", -std::numeric_limits<double>::infinity()}};

// A text of JSON in which each of these words has become a string of the same length, so that a
// parser of strict JSON takes it and tells the same places. Which strings are such words follows
// from their number in the text and not from what they say: no other string is mistaken for one.
struct StrictText {
  std::string text;
  std::map<std::size_t, double> numbers;  // by how many strings and keys come before

  explicit StrictText(std::string_view source) : text(source) {
    std::size_t strings = 0;
    for (std::size_t at = 0; at < text.size();) {
      if (text[at] == '"') {
        at = end_of_string(at + 1);
        ++strings;
        continue;
      }
      const Word* word = word_at(source.substr(at));
      if (word != nullptr) {
        text.replace(at, word->text.size(), word->text.size(), 'x');
        text[at] = text[at + word->text.size() - 1] = '"';
        numbers.emplace(strings++, word->value);
      }
      at += word != nullptr ? word->text.size() : 1;
    }
  }

  // False for almost every text, also where a vocabulary has "NaN" in quotes.
  static bool needed(std::string_view source) {
    for (const std::string_view word : {"NaN", "Infinity"}) {
      for (auto at = source.find(word); at != source.npos; at = source.find(word, at + 1)) {
        if (at == 0 || std::string_view(" \t\r\n:,[-").find(source[at - 1]) != source.npos)
          return true;
      }
    }
    return false;
  }

 private:
  static const Word* word_at(std::string_view rest) {
    if (rest[0] != 'N' && rest[0] != 'I' && rest[0] != '-') return nullptr;
    for (const Word& word : words) {
      if (rest.substr(0, word.text.size()) == word.text) return &word;
    }
    return nullptr;
  }

  std::size_t end_of_string(std::size_t at) const {
    while (at < text.size() && text[at] != '"') at += text[at] == '\\' ? 2 : 1;
    return at + 1;
  }
};

// Builds the tree from nlohmann's events and refuses what its parser would let pass.
class TreeBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  TreeBuilder(const std::string& where, const std::string& name,
              const std::map<std::size_t, double>& numbers)
      : where_(where), name_(name), numbers_(numbers) {}

  Json result;

  bool null() override { return add(Json()); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool string(string_t& value) override {
    const auto word = numbers_.find(strings_++);
    return word != numbers_.end() ? add(word->second) : add(std::move(value));
  }
  bool binary(binary_t&) override { return false; }  // JSON has none

  bool key(string_t& text) override {
    if (numbers_.count(strings_++) != 0) {
      throw FormatError(where_, name_, "keys in quotes", "a number for one");
    }
    open_.back().key = std::move(text);
    return true;
  }
  bool start_object(std::size_t) override { return start(true); }
  bool start_array(std::size_t) override { return start(false); }

  bool end_object() override {
    Json::Object members = std::move(open_.back().members);
    open_.pop_back();
    check_keys(members);
    return add(std::move(members));
  }

  bool end_array() override {
    Json::Array elements = std::move(open_.back().elements);
    open_.pop_back();
    return add(std::move(elements));
  }

  bool parse_error(std::size_t byte, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (dynamic_cast<const nlohmann::json::out_of_range*>(&error) != nullptr) {
      throw FormatError(where_, name_, "numbers that fit a double", "a larger one");
    }
    throw FormatError(where_, name_, "valid JSON", fmt::format("an error at byte {}", byte));
  }

 private:
  struct Level {
    bool object;
    std::string key;  // of the member that is read
    Json::Object members;
    Json::Array elements;
  };

  bool start(bool object) {
    if (open_.size() == deepest) {
      throw FormatError(where_, name_, fmt::format("at most {} levels", deepest), "more");
    }
    open_.push_back({object, {}, {}, {}});
    return true;
  }

  bool add(Json value) {
    if (open_.empty()) {
      result = std::move(value);
    } else if (open_.back().object) {
      open_.back().members.push_back({std::move(open_.back().key), std::move(value)});
    } else {
      open_.back().elements.push_back(std::move(value));
    }
    return true;
  }

  void check_keys(const Json::Object& members) const {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const Json::Member& member : members) keys.push_back(member.key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) {
      throw FormatError(where_, in_quotes(*twice), "a key given once", "it twice");
    }
  }

  const std::string& where_;
  const std::string& name_;
  const std::map<std::size_t, double>& numbers_;  // that stand in the place of a string
  std::size_t strings_ = 0;                       // strings and keys so far
  std::vector<Level> open_;                       // the objects and lists around what comes next
};

using Handler = nlohmann::json::error_handler_t;

// Of nlohmann's values only those without others in them are made: their destructor takes no
// memory.
template <class Value>
std::string scalar_text(const Value& value, Handler handler = Handler::replace) {
  return nlohmann::json(value).dump(-1, ' ', false, handler);
}

void new_line(std::string& text, int indent, int level) {
  if (indent < 0) return;
  text += '\n';
  text.append(static_cast<std::size_t>(indent * level), ' ');
}

}  // namespace

// ---- Json -------------------------------------------------------------------------------------

Json::Json() = default;
Json::~Json() = default;
Json::Json(const Json&) = default;
Json::Json(Json&&) noexcept = default;
Json& Json::operator=(const Json&) = default;
Json& Json::operator=(Json&&) noexcept = default;

double Json::number() const {
  if (is_count()) return static_cast<double>(count());
  if (is<std::int64_t>()) return static_cast<double>(std::get<std::int64_t>(value_));
  return std::get<double>(value_);
}

const Json* Json::find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const Member& member : members()) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

void Json::set(std::string_view key, Json value) {
  for (Member& member : std::get<Object>(value_)) {
    if (member.key == key) {
      member.value = std::move(value);
      return;
    }
  }
  std::get<Object>(value_).push_back({std::string(key), std::move(value)});
}

void Json::erase(std::string_view key) {
  Object& list = std::get<Object>(value_);
  list.erase(std::remove_if(list.begin(), list.end(),
                            [&](const Member& member) { return member.key == key; }),
             list.end());
}

bool operator==(const Json& a, const Json& b) {
  if (a.is_number() && b.is_number() && a.value_.index() != b.value_.index()) {
    return a.number() == b.number();
  }
  if (a.is<double>() && b.is<double>() && std::isnan(a.number()) && std::isnan(b.number())) {
    return true;
  }
  return a.value_ == b.value_;
}

std::string Json::dump(int indent) const {
  std::string text;
  append_to(text, indent, 0);
  return text;
}

void Json::append_to(std::string& text, int indent, int level) const {
  const char* separator = "";
  const auto next = [&] {
    text += std::exchange(separator, ",");
    new_line(text, indent, level + 1);
  };
  if (is_object() && !members().empty()) {
    text += '{';
    for (const Member& member : members()) {
      next();
      Json(member.key).append_to(text, indent, level);
      text += indent < 0 ? ":" : ": ";
      member.value.append_to(text, indent, level + 1);
    }
    new_line(text, indent, level);
    text += '}';
  } else if (is_array() && !elements().empty()) {
    text += '[';
    for (const Json& element : elements()) {
      next();
      element.append_to(text, indent, level + 1);
    }
    new_line(text, indent, level);
    text += ']';
  } else {
    text += scalar();
  }
}

std::string Json::scalar() const {
  if (is_object()) return "{}";
  if (is_array()) return "[]";
  if (is_text()) return scalar_text(text());
  if (is_boolean()) return boolean() ? "true" : "false";
  if (is_count()) return fmt::format("{}", count());
  if (is_number()) {
    for (const Word& word : words) {
      if (word.value == number() || (std::isnan(word.value) && std::isnan(number()))) {
        return std::string(word.text);
      }
    }
    const auto* whole = std::get_if<std::int64_t>(&value_);
    return whole != nullptr ? fmt::format("{}", *whole) : scalar_text(number());
  }
  return "null";
}

// ---- text -------------------------------------------------------------------------------------

Json parse_json(std::string_view text, const std::string& where, const std::string& name) {
  // The parser takes a NUL for the end and would not look at what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw FormatError(where, name, "text", fmt::format("a NUL at byte {}", nul));
  }
  std::optional<StrictText> strict;
  if (StrictText::needed(text)) text = strict.emplace(text).text;
  const std::map<std::size_t, double> none;
  TreeBuilder builder(where, name, strict ? strict->numbers : none);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return std::move(builder.result);
}

std::string describe(const Json& value) {
  if (value.is_text()) return in_quotes(value.text());
  if (value.is_array()) return "a list";
  if (value.is_object()) return "an object";
  return value.dump();
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t longest = 100;
  const bool cut = text.size() > longest;
  return scalar_text(std::string(text.substr(0, longest))) + (cut ? "..." : "");
}

std::optional<std::string> json_text(const std::string& text) {
  try {
    return scalar_text(text, Handler::strict);
  } catch (const nlohmann::json::type_error&) {
    return std::nullopt;
  }
}

}  // namespace mamba
