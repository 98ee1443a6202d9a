#include "serve_request.hpp"

#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace {

using Json = nlohmann::json;

std::string text_of(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

[[noreturn]] void refuse(const char* expected, const Json& got) {
  throw std::invalid_argument(std::string("expected ") + expected + ", got " + text_of(got));
}

// Values of the kind that `field` is. JSON's own conversions cut fractions off, wrap round and take
// true for 1.
void take(const Json& value, float& field) {
  if (!value.is_number()) refuse("a number", value);
  value.get_to(field);
}

void take(const Json& value, std::uint64_t& field) {
  if (!value.is_number_unsigned()) refuse("a whole number from 0 to 2^64 - 1", value);
  value.get_to(field);
}

void take(const Json& value, std::int64_t& field) {
  constexpr auto largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() && value.get<std::uint64_t>() > largest)) {
    refuse("a whole number below 2^63", value);
  }
  value.get_to(field);
}

void take(const Json& value, bool& field) {
  if (!value.is_boolean()) refuse("true or false", value);
  value.get_to(field);
}

void take(const Json& value, std::string& field) {
  if (!value.is_string()) refuse("a text", value);
  value.get_to(field);
}

void take(const Json& value, std::vector<std::string>& field) {
  if (!value.is_array()) refuse("a list of texts", value);
  for (const Json& element : value) take(element, field.emplace_back());
}

void set(Request& request, const std::string& key, const Json& value,
         const mamba::Tokenizer& tokenizer) {
  using Setter = std::function<void(const Json&)>;
  mamba::SamplingOptions& sampling = request.sampling;
  mamba::GenerateOptions& options = request.options;
  const std::map<std::string, Setter> setters{
      {"id", [](const Json&) {}},
      {"prompt",
       [&](const Json& v) {
         std::string text;
         take(v, text);
         request.prompt = tokenizer.encode(text);
       }},
      {"max_tokens", [&](const Json& v) { take(v, options.max_tokens); }},
      {"ignore_eos", [&](const Json& v) { take(v, options.ignore_eos); }},
      {"stop", [&](const Json& v) { take(v, options.stop); }},
      {"temperature", [&](const Json& v) { take(v, sampling.temperature); }},
      {"top_k", [&](const Json& v) { take(v, sampling.top_k); }},
      {"top_p", [&](const Json& v) { take(v, sampling.top_p); }},
      {"min_p", [&](const Json& v) { take(v, sampling.min_p); }},
      {"repetition_penalty", [&](const Json& v) { take(v, sampling.repetition_penalty); }},
      {"seed", [&](const Json& v) { take(v, sampling.seed); }}};
  const auto setter = setters.find(key);
  if (setter == setters.end()) throw std::invalid_argument("no such key");
  setter->second(value);
}

// Copies and texts of a value go down its levels, and a line may have more than the stack holds.
bool shallow(int depth, Json::parse_event_t event, Json&) {
  constexpr int most = 64;
  const bool starts =
      event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
  if (starts && depth >= most) throw std::invalid_argument("expected at most 64 levels, got more");
  return true;
}

}  // namespace

void parse(const std::string& line, const mamba::Tokenizer& tokenizer, Request& request) {
  const Json json = Json::parse(line, shallow, /*allow_exceptions=*/false);
  if (!json.is_object()) throw std::invalid_argument("expected an object of JSON in one line");
  if (json.contains("id")) request.id = text_of(json["id"]);
  request.options.tokenizer = &tokenizer;
  for (const auto& [key, value] : json.items()) {
    try {
      set(request, key, value, tokenizer);
    } catch (const std::exception& error) {
      throw std::invalid_argument(key + ": " + error.what());
    }
  }
  request.sampling.check();
  request.options.check();
  if (request.prompt.empty()) throw std::invalid_argument("prompt: none, or an empty one");
}
