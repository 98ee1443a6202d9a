#include "fields.hpp"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include <mamba/tokenizer.hpp>

namespace server {

std::string text_of(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void refuse(const char* expected, const Json& got) {
  throw std::invalid_argument(std::string("expected ") + expected + ", got " + text_of(got));
}

void read_value(const Json& value, float& field) {
  if (!value.is_number()) refuse("a number", value);
  constexpr double largest = std::numeric_limits<float>::max();
  if (std::abs(value.get<double>()) > largest) refuse("a number of at most 3.4e38", value);
  value.get_to(field);
}

void read_value(const Json& value, std::uint64_t& field) {
  if (!value.is_number_unsigned()) refuse("a whole number from 0 to 2^64 - 1", value);
  value.get_to(field);
}

void read_value(const Json& value, std::int64_t& field) {
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<std::uint64_t>() > largest)) {
    refuse("a whole number below 2^63", value);
  }
  value.get_to(field);
}

void read_value(const Json& value, bool& field) {
  if (!value.is_boolean()) refuse("true or false", value);
  value.get_to(field);
}

void read_value(const Json& value, std::string& field) {
  if (!value.is_string()) refuse("a text", value);
  value.get_to(field);
}

void read_value(const Json& value, std::vector<std::string>& field) {
  if (value.is_string()) return read_value(value, field.emplace_back());
  if (!value.is_array()) refuse("a text, or a list of texts", value);
  for (const Json& element : value) read_value(element, field.emplace_back());
}

namespace {

// Copies and texts of a value go down its levels, and a line may have more than the stack holds.
bool shallow(int depth, Json::parse_event_t event, Json&) {
  constexpr int most = 64;
  const bool starts =
      event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
  if (starts && depth >= most) throw std::invalid_argument("expected at most 64 levels, got more");
  return true;
}

}  // namespace

Json parse_json(const std::string& text) {
  return Json::parse(text, shallow, /*allow_exceptions=*/false);
}

std::string repaired(const std::string& line) {
  mamba::TextStream stream;
  std::string text = stream.push(line);
  text += stream.finish();
  // Of an escape \uXXXX at `at`; absent for anything else.
  const auto unit = [&](std::size_t at) -> std::optional<unsigned> {
    unsigned value = 0;
    if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return std::nullopt;
    const char* const end = text.data() + at + 6;
    const auto parsed = std::from_chars(text.data() + at + 2, end, value, 16);
    return parsed.ptr == end ? std::optional(value) : std::nullopt;
  };
  const auto high = [](unsigned value) { return value >= 0xD800 && value < 0xDC00; };
  const auto low = [](unsigned value) { return value >= 0xDC00 && value < 0xE000; };
  for (std::size_t at = text.find('\\'); at < text.size(); at = text.find('\\', at)) {
    const std::optional<unsigned> first = unit(at);
    const std::optional<unsigned> second = unit(at + 6);
    if (first && high(*first) && second && low(*second)) {
      at += 12;
    } else if (first) {
      if (high(*first) || low(*first)) text.replace(at, 6, "\\uFFFD");
      at += 6;
    } else {
      at += 2;  // another escape: its second character begins none
    }
  }
  return text;
}

void check_and_resolve(mamba::SamplingOptions& sampling, bool greedy) {
  mamba::SamplingOptions drawn = sampling;
  if (greedy) drawn.temperature = 1;
  drawn.check();
  if (!greedy) return;
  sampling.top_k = 0;
  sampling.top_p = 1;
  sampling.min_p = 0;
}

}  // namespace server
