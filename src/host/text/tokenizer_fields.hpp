// What the readers of a tokenizer.json share.
#pragma once

#include <string>

#include <mamba/error.hpp>

#include "host/core/json.hpp"

namespace mamba {

// The fields of one file, which the errors name.
class TokenizerFields {
 public:
  explicit TokenizerFields(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(path_, name, expected, got);
  }
  [[noreturn]] void refuse_value(const std::string& name, const std::string& expected,
                                 const Json& got) const {
    refuse(name, expected, got.is_null() ? "nothing" : describe(got));
  }

  // The member of this key; null if there is none.
  static const Json& at(const Json& object, const char* key) {
    static const Json null;
    const Json* found = object.find(key);
    return found != nullptr ? *found : null;
  }

  bool flag(const Json& object, const std::string& name, const char* key) const {
    const Json& value = at(object, key);
    if (!value.is_boolean()) refuse_value(name + "." + key, "true or false", value);
    return value.boolean();
  }
  bool flag(const Json& object, const std::string& name, const char* key, bool otherwise) const {
    return at(object, key).is_null() ? otherwise : flag(object, name, key);
  }

  const Json::Array& list(const Json& object, const std::string& name, const char* key) const {
    const Json& value = at(object, key);
    if (!value.is_array()) refuse_value(name + "." + key, "a list", value);
    return value.elements();
  }

  // Absent, null or `value`.
  void expect_unless_absent(const Json& object, const std::string& name, const char* key,
                            const Json& value) const {
    const Json& got = at(object, key);
    if (!got.is_null() && got != value) refuse_value(name + "." + key, value.dump(), got);
  }

 private:
  std::string path_;
};

}  // namespace mamba
