#include "line_request.hpp"

#include <functional>
#include <map>

#include "fields.hpp"

namespace server {

namespace {

void set(Job& job, const std::string& key, const Json& value, const mamba::Tokenizer& tokenizer) {
  using Setter = std::function<void(const Json&)>;
  mamba::SamplingOptions& sampling = job.sampling;
  const std::map<std::string, Setter> setters{
      {"id", [](const Json&) {}},
      {"prompt",
       [&](const Json& v) {
         std::string text;
         read_value(v, text);
         job.prompt = tokenizer.encode(text);
       }},
      {"max_tokens", [&](const Json& v) { read_value(v, job.max_tokens); }},
      {"ignore_eos", [&](const Json& v) { read_value(v, job.ignore_eos); }},
      {"stop", [&](const Json& v) { read_value(v, job.stop); }},
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
  Json json = parse_json(text);
  if (!json.is_object()) throw std::invalid_argument("expected an object of JSON in one line");
  return json;
}

}  // namespace

void parse(const std::string& line, const mamba::Tokenizer& tokenizer, LineRequest& request) {
  const std::string text = repaired(line);
  Json json;
  try {
    json = object_of(text);
  } catch (...) {
    request.id = id_of(text);
    throw;
  }
  if (json.contains("id")) request.id = text_of(json["id"]);
  Job& job = request.job;
  job.max_tokens = mamba::GenerateOptions().max_tokens;
  job.stop_in_text = true;
  for (const auto& [key, value] : json.items()) {
    try {
      set(job, key, value, tokenizer);
    } catch (const std::exception& error) {
      throw std::invalid_argument(key + ": " + error.what());
    }
  }
  const bool says_temperature = json.contains("temperature") && !json["temperature"].is_null();
  check_and_resolve(job.sampling, says_temperature && job.sampling.temperature == 0);
  options_of(job, tokenizer);
  if (job.prompt.empty()) throw std::invalid_argument("prompt: none, or an empty one");
}

}  // namespace server
