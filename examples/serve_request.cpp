#include "serve_request.hpp"

#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include <mamba/tokenizer.hpp>

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
         read_value(v, text);
         request.prompt = tokenizer.encode(text);
       }},
      {"max_tokens", [&](const Json& v) { read_value(v, options.max_tokens); }},
      {"ignore_eos", [&](const Json& v) { read_value(v, options.ignore_eos); }},
      {"stop", [&](const Json& v) { read_value(v, options.stop); }},
      {"temperature", [&](const Json& v) { read_value(v, sampling.temperature); }},
      {"top_k", [&](const Json& v) { read_value(v, sampling.top_k); }},
      {"top_p", [&](const Json& v) { read_value(v, sampling.top_p); }},
      {"min_p", [&](const Json& v) { read_value(v, sampling.min_p); }},
      {"repetition_penalty", [&](const Json& v) { read_value(v, sampling.repetition_penalty); }},
      {"seed", [&](const Json& v) { read_value(v, sampling.seed); }}};
  const auto setter = setters.find(key);
  if (setter == setters.end()) throw std::invalid_argument("no such key");
  if (!value.is_null()) setter->second(value);  // null is what clients write for what is not given
}

// Copies and texts of a value go down its levels, and a line may have more than the stack holds.
bool shallow(int depth, Json::parse_event_t event, Json&) {
  constexpr int most = 64;
  const bool starts =
      event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start;
  if (starts && depth >= most) throw std::invalid_argument("expected at most 64 levels, got more");
  return true;
}

// Half a surrogate pair as U+FFFD, and what is no UTF-8 likewise: JSON has neither, but programs
// that cut text at a number of bytes or of UTF-16 write both, and one wrong character is no reason
// to refuse a prompt.
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

// The id at the top of a line, if it is a number or a text, as far as the line is JSON.
class IdFinder : public nlohmann::json_sax<Json> {
 public:
  std::string id = "null";

  bool null() override { return scalar(nullptr); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_integer(number_integer_t value) override { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) override { return scalar(value); }
  bool number_float(number_float_t value, const string_t&) override { return scalar(value); }
  bool string(string_t& value) override { return scalar(value); }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return enter(); }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& value) override {
    if (depth_ == 1) is_id_ = value == "id";
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  bool scalar(const Json& value) {
    if (depth_ == 1 && is_id_) id = text_of(value);
    return true;
  }
  bool enter() {
    ++depth_;
    return true;
  }
  bool leave() {
    --depth_;
    return true;
  }

  std::size_t depth_ = 0;
  bool is_id_ = false;
};

std::string id_of(const std::string& text) {
  IdFinder finder;
  Json::sax_parse(text, &finder);
  return finder.id;
}

Json object_of(const std::string& text) {
  Json json = Json::parse(text, shallow, /*allow_exceptions=*/false);
  if (!json.is_object()) throw std::invalid_argument("expected an object of JSON in one line");
  return json;
}

// A temperature of 0 is greedy, whatever is said of how to draw: those numbers must be right all
// the same.
void check_and_resolve(mamba::SamplingOptions& sampling, bool greedy) {
  mamba::SamplingOptions drawn = sampling;
  if (greedy) drawn.temperature = 1;
  drawn.check();
  if (!greedy) return;
  sampling.top_k = 0;
  sampling.top_p = 1;
  sampling.min_p = 0;
}

}  // namespace

void parse(const std::string& line, const mamba::Tokenizer& tokenizer, Request& request) {
  const std::string text = repaired(line);
  Json json;
  try {
    json = object_of(text);
  } catch (...) {
    request.id = id_of(text);
    throw;
  }
  if (json.contains("id")) request.id = text_of(json["id"]);
  request.options.tokenizer = &tokenizer;
  for (const auto& [key, value] : json.items()) {
    try {
      set(request, key, value, tokenizer);
    } catch (const std::exception& error) {
      throw std::invalid_argument(key + ": " + error.what());
    }
  }
  const bool says_temperature = json.contains("temperature") && !json["temperature"].is_null();
  check_and_resolve(request.sampling, says_temperature && request.sampling.temperature == 0);
  request.options.check();
  if (request.prompt.empty()) throw std::invalid_argument("prompt: none, or an empty one");
}
