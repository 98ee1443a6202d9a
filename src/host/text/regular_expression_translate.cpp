// From Oniguruma's dialect to ICU's. What both read in the same way is copied, what ICU reads in
// another way is written out, and what is left is refused by name.
#include <fmt/format.h>
#include <unicode/uchar.h>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/text/regular_expression.hpp"
#include "host/text/utf8.hpp"

namespace mamba {
namespace {

constexpr std::size_t longest_pattern = 1 << 16;
constexpr int deepest_groups = 100;
constexpr int most_repeats = 1000;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Translation {
 public:
  Translation(const std::string& pattern, const std::string& where, const std::string& name)
      : pattern_(pattern), where_(where), name_(name), rest_(pattern) {}

  std::string run() {
    if (pattern_.size() > longest_pattern) refuse("more than 65536 bytes");
    while (!rest_.empty()) element();
    if (depth_ != 0) refuse("a group that does not end");
    return std::move(result_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw FormatError(where_, name_, "a regular expression without " + what, in_quotes(pattern_));
  }

  bool take(std::string_view text) {
    if (rest_.compare(0, text.size(), text) != 0) return false;
    rest_.remove_prefix(text.size());
    return true;
  }

  char take() {
    if (rest_.empty()) refuse("an end that comes too early");
    const char c = rest_[0];
    rest_.remove_prefix(1);
    return c;
  }

  void element() {
    if (take("[")) return set();
    if (take("(")) return begin_group();
    if (take(")")) return end_group();
    if (take("\\")) return static_cast<void>(escape(/*in_set=*/false));
    if (take("|")) return raw("|");
    if (take(".")) return one_of("[^\\n]");
    // As Oniguruma has lines: they end with \n alone, and the last \n of a text begins none.
    if (take("^")) return raw("(?:\\A|(?<=\\n)(?!\\z))");
    if (take("$")) return raw("(?:(?=\\n)|(?<!\\n)\\z)");
    const char next = rest_[0];
    if (next == '*' || next == '+' || next == '?') return repeat();
    if (next == '{') return counted_repeat();
    literal(take_character());
  }

  // ---- single characters ----

  char32_t take_character() {
    const Utf8Character next = first_character(rest_);
    if (next.kind != Utf8Character::whole) refuse("broken UTF-8");
    rest_.remove_prefix(next.bytes);
    return next.code;
  }

  void literal(char32_t code) {
    if (folds_ > 0 && code >= 0x80) refuse("(?i:...) around more than ASCII");
    if (code >= 0x80) {
      result_ += fmt::format("\\x{{{:X}}}", static_cast<std::uint32_t>(code));
      return;
    }
    const char c = static_cast<char>(code);
    if (code < 0x20 || code == 0x7F) {
      result_ += fmt::format("\\x{{{:X}}}", static_cast<std::uint32_t>(code));
      return;
    }
    if (c != ' ' && !is_letter(c) && !is_digit(c)) result_ += '\\';
    result_ += c;
  }

  void raw(std::string_view text) { result_ += text; }

  // More than one character, which case folding is not defined for in the same way.
  void one_of(std::string_view text) {
    if (folds_ > 0) refuse("(?i:...) around more than ASCII");
    result_ += text;
  }

  // After the backslash. True if it stands for one character.
  bool escape(bool in_set) {
    if (rest_.empty()) refuse("a \\ at its end");
    const char c = rest_[0];
    if (!is_letter(c) && !is_digit(c)) return literal(take_character()), true;
    rest_.remove_prefix(1);
    switch (c) {
      case 's':
      case 'S':
      case 'd':
      case 'D':
        return one_of(std::string("\\") + c), false;
      case 'w':
        return one_of("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]"), false;
      case 'W':
        return one_of("[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]"), false;
      case 'p':
      case 'P':
        return property(c), false;
      case 'n':
        return literal('\n'), true;
      case 'r':
        return literal('\r'), true;
      case 't':
        return literal('\t'), true;
      case 'f':
        return literal('\f'), true;
      case 'v':
        return literal('\v'), true;
      case 'a':
        return literal('\a'), true;
      case 'e':
        return literal(0x1B), true;
      case 'u':
        return literal(hexadecimal(4)), true;
      case 'x':
        return literal(take("{") ? braced() : short_code()), true;
      case 'A':
      case 'z':
        if (!in_set) return raw(std::string("\\") + c), false;
    }
    refuse(fmt::format("\\{}", c));
  }

  char32_t hexadecimal(std::size_t digits) {
    char32_t code = 0;
    for (std::size_t i = 0; i < digits; ++i) {
      const char c = take();
      const std::size_t value = std::string_view("0123456789abcdef").find(lower(c));
      if (value == std::string_view::npos) refuse("\\u or \\x without its digits");
      code = code << 4 | static_cast<char32_t>(value);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) refuse("a code that is no character");
    return code;
  }
  static char lower(char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c; }

  char32_t braced() {
    const std::size_t digits = rest_.find('}');
    if (digits == 0 || digits > 6) refuse("\\x without its digits");
    const char32_t code = hexadecimal(digits);
    take("}");
    return code;
  }

  char32_t short_code() {  // beyond ASCII it would be a byte
    const char32_t code = hexadecimal(2);
    if (code >= 0x80) refuse("bytes");
    return code;
  }

  // General categories in short, and scripts.
  void property(char kind) {
    const std::size_t end = rest_.find('}');
    if (!take("{") || end == std::string_view::npos) refuse("\\p without a name in braces");
    const std::string name(rest_.substr(0, end - 1));
    rest_.remove_prefix(end);
    const auto has = [&](UProperty property) {
      return u_getPropertyValueEnum(property, name.c_str()) != UCHAR_INVALID_CODE;
    };
    for (const char c : name) {
      if (!is_letter(c) && c != '_') refuse("\\p{" + name + "}");
    }
    if (name.size() <= 2 && has(UCHAR_GENERAL_CATEGORY_MASK)) {
      one_of(fmt::format("\\{}{{{}}}", kind, name));
    } else if (name.size() > 2 && has(UCHAR_SCRIPT)) {
      one_of(fmt::format("\\{}{{Script={}}}", kind, name));
    } else {
      refuse("\\p{" + name + "}");
    }
  }

  // ---- sets ----

  void set() {
    if (folds_ > 0) refuse("(?i:...) around more than ASCII");
    result_ += '[';
    if (take("^")) result_ += '^';
    if (rest_.empty() || rest_[0] == ']') refuse("an empty set");
    bool range_may_begin = take("-");  // the last item was one character
    if (range_may_begin) literal('-');
    while (!take("]")) {
      if (rest_.empty()) refuse("a set that does not end");
      if (rest_[0] == '[') refuse("a set in a set");
      if (rest_.compare(0, 2, "&&") == 0) refuse("&&");
      range_may_begin = set_item(range_may_begin);
    }
    result_ += ']';
  }

  bool set_item(bool range_may_begin) {
    if (rest_[0] != '-' || rest_.compare(0, 2, "-]") == 0) return set_character();
    if (!range_may_begin) refuse("a - after a set or range");
    take();
    result_ += '-';
    if (rest_.empty() || rest_[0] == '[' || !set_character()) refuse("a range to a set");
    return false;
  }

  bool set_character() {
    if (take("\\")) return escape(/*in_set=*/true);
    literal(take_character());
    return true;
  }

  // ---- groups and repeats ----

  void begin_group() {
    if (++depth_ > deepest_groups) refuse("more than 100 groups in each other");
    if (folds_ > 0) ++folds_;
    if (take("?i:")) {
      if (folds_ == 0) folds_ = 1;
      return raw("(?i:");
    }
    for (const std::string_view kind : {"?:", "?=", "?!", "?>", "?<=", "?<!"}) {
      if (take(kind)) {
        result_ += '(';
        return raw(kind);
      }
    }
    if (!rest_.empty() && rest_[0] == '?') {
      refuse(fmt::format("({}", std::string(rest_.substr(0, 3))));
    }
    raw("(?:");  // what a group has matched is of no use here
  }

  void end_group() {
    if (--depth_ < 0) refuse("a ) too many");
    if (folds_ > 0) --folds_;
    raw(")");
  }

  void repeat() {
    result_ += take();
    if (!rest_.empty() && (rest_[0] == '?' || rest_[0] == '+')) result_ += take();
    refuse_another_repeat();
  }

  void counted_repeat() {
    take();
    result_ += '{';
    number();
    if (take(",")) {
      result_ += ',';
      if (!rest_.empty() && rest_[0] != '}') number();
    }
    if (!take("}")) refuse("a { that is no count");
    result_ += '}';
    refuse_another_repeat();
  }

  void number() {
    int value = 0;
    if (rest_.empty() || !is_digit(rest_[0])) refuse("a { that is no count");
    while (!rest_.empty() && is_digit(rest_[0])) {
      value = value * 10 + (take() - '0');
      if (value > most_repeats) refuse("a count above 1000");
    }
    result_ += std::to_string(value);
  }

  void refuse_another_repeat() const {
    if (!rest_.empty() && std::string_view("*+?{").find(rest_[0]) != std::string_view::npos) {
      refuse("a repeat of a repeat");
    }
  }

  const std::string& pattern_;
  const std::string& where_;
  const std::string& name_;
  std::string_view rest_;
  std::string result_;
  int depth_ = 0;
  int folds_ = 0;  // how deep in (?i:...); 0: not in one
};

}  // namespace

std::string translated_for_icu(const std::string& pattern, const std::string& where,
                               const std::string& name) {
  return Translation(pattern, where, name).run();
}

}  // namespace mamba
