// JSON from files, which may be careless or hostile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace mamba {

// A value of JSON. Unlike nlohmann's its destructor takes no memory, so a parser or writer that
// runs out of memory halfway can throw. An object is a list of its members, in which looking one up
// takes time linear in their number: readers ask for a few known keys, or walk through all.
class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;  // in the order of the file

  Json();  // null
  ~Json();
  Json(const Json&);
  Json(Json&&) noexcept;
  Json& operator=(const Json&);
  Json& operator=(Json&&) noexcept;
  Json(bool value) : value_(value) {}
  template <class Integer, class = std::enable_if_t<std::is_integral_v<Integer>>>
  Json(Integer value) {
    value_ = static_cast<std::uint64_t>(value);
    if constexpr (std::is_signed_v<Integer>) {
      if (value < 0) value_ = static_cast<std::int64_t>(value);
    }
  }
  Json(double value) : value_(value) {}
  Json(float value) : value_(double{value}) {}
  Json(std::string value) : value_(std::move(value)) {}
  Json(const char* value) : value_(std::string(value)) {}
  Json(Array value) : value_(std::move(value)) {}
  Json(Object value) : value_(std::move(value)) {}

  static Json array() { return Array(); }
  static Json object() { return Object(); }

  bool is_null() const { return is<std::nullptr_t>(); }
  bool is_boolean() const { return is<bool>(); }
  bool is_count() const { return is<std::uint64_t>(); }  // a whole number that is not negative
  bool is_number() const { return is<std::int64_t>() || is_count() || is<double>(); }
  bool is_text() const { return is<std::string>(); }
  bool is_array() const { return is<Array>(); }
  bool is_object() const { return is<Object>(); }

  // Only of a value that is one.
  bool boolean() const { return std::get<bool>(value_); }
  std::uint64_t count() const { return std::get<std::uint64_t>(value_); }
  double number() const;  // any number, as the nearest double
  const std::string& text() const { return std::get<std::string>(value_); }
  const Array& elements() const { return std::get<Array>(value_); }
  const Object& members() const { return std::get<Object>(value_); }

  // The member of this key; nullptr if there is none, or this is no object.
  const Json* find(std::string_view key) const;
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  // Of an object: in place of the member of this key, or after all others.
  void set(std::string_view key, Json value);
  void erase(std::string_view key);

  // In one line without blanks, or in lines indented by so many blanks a level.
  std::string dump(int indent = -1) const;

  // Numbers are equal if they are the same number, and NaN is NaN; members count in their order.
  friend bool operator==(const Json& a, const Json& b);
  friend bool operator!=(const Json& a, const Json& b) { return !(a == b); }

 private:
  template <class T>
  bool is() const {
    return std::holds_alternative<T>(value_);
  }
  void append_to(std::string& text, int indent, int level) const;
  std::string scalar() const;  // the text of what has nothing in it

  std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value_;
};

struct Json::Member {
  std::string key;
  Json value;
  friend bool operator==(const Member& a, const Member& b) {
    return a.key == b.key && a.value == b.value;
  }
};

// All of `text` as one JSON value, in which NaN, Infinity and -Infinity are numbers, as Python's
// json writes them; dump() does so too. Malformed text, a key that is there twice, and nesting so
// deep that walking it could overflow the stack are FormatErrors; `where` names the file, `name`
// the text in it. Takes O(n log n) time for n keys.
Json parse_json(std::string_view text, const std::string& where, const std::string& name = "JSON");

// What an error message says came: "3", "\"text\"", "true", "a list", cut short if long.
std::string describe(const Json& value);

// In quotes and with escapes, cut short if long. For error messages.
std::string in_quotes(std::string_view text);

// In quotes and with escapes; nothing if it is not UTF-8.
std::optional<std::string> json_text(const std::string& text);

}  // namespace mamba
