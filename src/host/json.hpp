// JSON from files, which may be careless or hostile.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace mamba {

using Json = nlohmann::ordered_json;  // keys keep the order of the file
// For objects of very many keys: Json goes through all of them to find one.
using SortedJson = nlohmann::json;

// All of `text` as one JSON value. Malformed text, a key that is there twice, and nesting so deep
// that walking it could overflow the stack are FormatErrors; `where` names the file, `name` the
// text in it.
Json parse_json(std::string_view text, const std::string& where, const std::string& name = "JSON");
SortedJson parse_sorted_json(std::string_view text, const std::string& where);

// What an error message says came: "3", "\"text\"", "true", "an array", cut short if long.
std::string describe(const Json& value);
std::string describe(const SortedJson& value);

// In quotes and with escapes, cut short if long. For error messages.
std::string in_quotes(std::string_view text);

}  // namespace mamba
