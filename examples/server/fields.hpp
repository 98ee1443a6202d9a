// Values out of JSON that anybody may have written.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include <mamba/sampling.hpp>

namespace server {

using Json = nlohmann::json;

// As JSON; what is no UTF-8 as U+FFFD.
std::string text_of(const Json& value);

// Throws std::invalid_argument: "expected ..., got ...".
[[noreturn]] void refuse(const char* expected, const Json& got);

// Values of the kind that `field` is. JSON's own conversions cut fractions off, wrap round and take
// true for 1.
void read_value(const Json& value, float& field);
void read_value(const Json& value, std::uint64_t& field);
void read_value(const Json& value, std::int64_t& field);
void read_value(const Json& value, bool& field);
void read_value(const Json& value, std::string& field);
void read_value(const Json& value, std::vector<std::string>& field);  // one text, or a list

// Discarded where it is no JSON. Throws std::invalid_argument where it is too deep for the copies
// and texts of values, which go down its levels.
Json parse_json(const std::string& text);

// Half a surrogate pair as U+FFFD, and what is no UTF-8 likewise: JSON has neither, but programs
// that cut text at a number of bytes or of UTF-16 write both, and one wrong character is no reason
// to refuse a prompt.
std::string repaired(const std::string& text);

// A temperature of 0 is greedy, whatever is said of how to draw: those numbers must be right all
// the same. Throws mamba::ArgumentError.
void check_and_resolve(mamba::SamplingOptions& sampling, bool greedy);

}  // namespace server
