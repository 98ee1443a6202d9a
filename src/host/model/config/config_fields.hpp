// The fields of a config file.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <mamba/error.hpp>

#include "host/core/json.hpp"
#include "host/model/config/config_checks.hpp"

namespace mamba {

// Typed access to the fields of one JSON object. What a field is not is a FormatError naming it.
class Fields {
 public:
  Fields(const Json& object, const std::string& path, std::string prefix = "")
      : object_(object), path_(path), prefix_(std::move(prefix)) {}

  bool has(const char* key) const { return object_.contains(key); }
  bool is(const char* key, const char* text) const { return has(key) && at(key) == text; }

  std::int64_t size(const char* key, std::int64_t most = limits::size) const {
    if (!has(key)) refuse(key, range_text(most), "nothing");
    const Json& value = at(key);
    // 768.0 is a whole number that some writers produce; 768.5 is a mistake.
    const double number = value.is_number() ? value.number() : 0;
    if (!(number >= 1 && number <= static_cast<double>(most) && std::trunc(number) == number)) {
      refuse(key, range_text(most), describe(value));
    }
    return static_cast<std::int64_t>(number);
  }

  std::int64_t size_or(const char* key, std::int64_t fallback,
                       std::int64_t most = limits::size) const {
    return has(key) ? size(key, most) : fallback;
  }

  // 0, "by the published rule", if it is missing or "auto".
  std::int64_t rank(const char* key) const {
    return has(key) && at(key) == "auto" ? 0 : size_or(key, 0);
  }

  float positive_or(const char* key, float fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    const float number = value.is_number() ? nearest(value) : 0.0f;
    if (!(number >= limits::smallest && number <= limits::largest)) {
      refuse(key, "a positive number", describe(value));
    }
    return number;
  }

  float number_or(const char* key, float fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    const float number = value.is_number() ? nearest(value) : limits::largest * 2;
    if (!(std::abs(number) <= limits::largest)) refuse(key, "a number", describe(value));
    return number;
  }

  // A list of two numbers, each of which may be infinite, as Python's json writes it or as
  // transformers does.
  std::pair<float, float> pair_or(const char* key, std::pair<float, float> fallback) const {
    if (!has(key)) return fallback;
    const Json& pair = at(key);
    if (!pair.is_array() || pair.elements().size() != 2) {
      refuse(key, "two numbers", describe(pair));
    }
    const auto number = [&](const Json& value) {
      const Json* word = value.find("__float__");
      if (word != nullptr && *word == "Infinity") return std::numeric_limits<float>::infinity();
      if (!value.is_number()) refuse(key, "two numbers", "a list with " + describe(value));
      return nearest(value);
    };
    return {number(pair.elements()[0]), number(pair.elements()[1])};
  }

  bool flag_or(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    const Json& value = at(key);
    if (!value.is_boolean()) refuse(key, "true or false", describe(value));
    return value.boolean();
  }

  // One id, a list of them, or null for none.
  std::vector<std::int32_t> ids_or(const char* key, std::vector<std::int32_t> fallback) const {
    if (!has(key)) return fallback;
    if (at(key).is_null()) return {};
    std::vector<std::int32_t> result;
    const auto add = [&](const Json& id) {
      if (!id.is_count() || id.count() > std::uint64_t{limits::size}) {
        refuse(key, fmt::format("ids of 0 to {}", limits::size), describe(id));
      }
      result.push_back(static_cast<std::int32_t>(id.count()));
    };
    if (!at(key).is_array()) add(at(key));
    if (at(key).is_array()) {
      for (const Json& id : at(key).elements()) add(id);
    }
    return result;
  }

  // The fields of an object within; none if it is missing.
  Fields within(const char* key) const {
    static const Json nothing = Json::object();
    if (!has(key)) return {nothing, path_, prefix_ + key + "."};
    if (!at(key).is_object()) refuse(key, "an object", describe(at(key)));
    return {at(key), path_, prefix_ + key + "."};
  }

  // An option of which only some values can be done.
  void only(const char* key, const std::vector<Json>& possible, const char* expected) const {
    if (has(key) && std::find(possible.begin(), possible.end(), at(key)) == possible.end()) {
      refuse(key, expected, describe(at(key)));
    }
  }

  void no_others(const std::set<std::string>& known, const char* expected) const {
    for (const auto& [key, value] : object_.members()) {
      if (known.count(key) == 0) refuse(key, expected, describe(value));
    }
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(path_, prefix_ + key, expected, got);
  }
  [[noreturn]] void refuse(const char* key, const std::string& expected) const {
    refuse(key, expected, has(key) ? describe(at(key)) : "nothing");
  }

 private:
  const Json& at(const char* key) const { return *object_.find(key); }
  // What is beyond a float is infinite, as all limits expect.
  static float nearest(const Json& value) { return static_cast<float>(value.number()); }
  static std::string range_text(std::int64_t most) { return fmt::format("1 to {}", most); }

  const Json& object_;
  const std::string& path_;
  std::string prefix_;
};

// The shortest decimal that reads back as this float: 1e-05 and not 9.999999747378752e-06.
inline Json number(float value) {
  if (std::isinf(value)) return value;
  return parse_json(fmt::format("{}", value), "to_json").number();
}

}  // namespace mamba
