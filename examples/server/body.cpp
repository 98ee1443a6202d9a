#include "body.hpp"

#include <algorithm>
#include <charconv>

namespace server {

namespace {

bool is_json(std::string type) {
  type = type.substr(0, type.find(';'));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  return lower(type) == "application/json";
}

}  // namespace

Body::Body(const Request& request) {
  const std::string type = request.header("content-type");
  if (!is_json(type)) {
    throw ApiError(415, "Content-Type: expected application/json, got " +
                            (type.empty() ? std::string("none") : text_of(type)));
  }
  try {
    json_ = parse_json(repaired(request.body));
  } catch (const std::invalid_argument& error) {
    throw ApiError(400, std::string("the body: ") + error.what());
  }
  if (!json_.is_object()) {
    throw ApiError(400, std::string("the body: expected an object of JSON, got ") +
                            (json_.is_discarded() ? "none" : json_.type_name()));
  }
}

const Json* Body::find(const char* field) const {
  const auto found = json_.find(field);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

bool Body::with(const char* field, const std::function<void(const Json&)>& use) const {
  const Json* value = find(field);
  if (value == nullptr) return false;
  try {
    use(*value);
  } catch (const ApiError&) {
    throw;
  } catch (const std::exception& error) {
    throw ApiError(422, std::string(field) + ": " + error.what(), field);
  }
  return true;
}

bool Body::read(const char* field, int& value, int low, int high) const {
  return with(field, [&](const Json& json) {
    std::int64_t read = 0;
    read_value(json, read);
    if (read < low || read > high) {
      refuse(("a whole number from " + std::to_string(low) + " to " + std::to_string(high)).c_str(),
             json);
    }
    value = static_cast<int>(read);
  });
}

void Body::only(const char* field, const Json& only) const {
  with(field, [&](const Json& json) {
    if (json != only) refuse((text_of(only) + ", or nothing").c_str(), json);
  });
}

bool is_ids(const Json& value) {
  return value.is_array() && !value.empty() && value.front().is_number();
}

Ids ids_of(const Json& list, std::int64_t vocab) {
  if (!list.is_array()) refuse("a list of token ids", list);
  Ids ids;
  ids.reserve(list.size());
  for (const Json& value : list) {
    std::int64_t id = -1;
    read_value(value, id);
    if (id < 0 || id >= vocab) {
      refuse(("token ids from 0 to " + std::to_string(vocab - 1)).c_str(), value);
    }
    ids.push_back(static_cast<std::int32_t>(id));
  }
  return ids;
}

void read_writing(const Body& body, const Limits& limits, const std::vector<const char*>& length,
                  std::uint64_t random_seed, Job& job) {
  for (const char* field : length) {
    const bool given = body.with(field, [&](const Json& json) {
      read_value(json, job.max_tokens);
      if (job.max_tokens >= 0 && job.max_tokens <= limits.most_tokens) return;
      refuse(("0 to " + std::to_string(limits.most_tokens)).c_str(), json);
    });
    if (given) break;
  }
  job.max_tokens = std::min(job.max_tokens, limits.most_tokens);
  body.read("ignore_eos", job.ignore_eos);
  body.read("stop", job.stop);
  mamba::SamplingOptions& sampling = job.sampling;
  sampling.temperature = 1;
  sampling.seed = random_seed;
  body.read("temperature", sampling.temperature);
  body.read("top_p", sampling.top_p);
  body.read("top_k", sampling.top_k);
  body.read("min_p", sampling.min_p);
  body.read("repetition_penalty", sampling.repetition_penalty);
  // OpenAI's seed may be negative.
  body.with("seed", [&](const Json& json) {
    std::int64_t seed = 0;
    if (json.is_number_unsigned()) {
      read_value(json, sampling.seed);
    } else {
      read_value(json, seed);
      sampling.seed = static_cast<std::uint64_t>(seed);
    }
  });
  body.with("logit_bias", [&](const Json& json) {
    if (!json.is_object()) refuse("an object of token ids and numbers", json);
    for (const auto& [key, value] : json.items()) {
      std::int32_t id = -1;
      const auto parsed = std::from_chars(key.data(), key.data() + key.size(), id);
      if (parsed.ptr != key.data() + key.size() || id < 0 || id >= limits.vocab) {
        refuse(("token ids from 0 to " + std::to_string(limits.vocab - 1)).c_str(), key);
      }
      read_value(value, sampling.logit_bias[id]);
    }
  });
  const auto check = [](const char* fallback, const auto& verify) {
    try {
      verify();
    } catch (const mamba::ArgumentError& error) {
      // "where: name: expected ..., got ...", where a name may say more in brackets.
      const std::string text = error.what();
      const std::size_t begin = text.find(": ");
      const std::string rest = begin == std::string::npos ? text : text.substr(begin + 2);
      const std::string name = rest.substr(0, rest.find_first_of(": ("));
      throw ApiError(422, rest, name.empty() ? fallback : name);
    }
  };
  check("temperature", [&] { check_and_resolve(sampling, sampling.temperature == 0); });
  check("stop", [&] { options_of(job, limits.tokenizer); });
}

}  // namespace server
