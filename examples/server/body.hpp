// The object of JSON that a request brings, field by field: an error names the field.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "engine.hpp"
#include "fields.hpp"
#include "http.hpp"

namespace server {

class Body {
 public:
  // ApiError 415 where it is not said to be JSON, 400 where it is none or no object.
  explicit Body(const Request& request);

  // nullptr where it is absent or null, which is what clients write for what is not given.
  const Json* find(const char* field) const;
  bool has(const char* field) const { return find(field) != nullptr; }

  // Sets `value` where the field is given. What does not fit is an ApiError 422.
  template <class T>
  bool read(const char* field, T& value) const {
    return with(field, [&](const Json& json) { read_value(json, value); });
  }
  bool read(const char* field, int& value, int low, int high) const;
  // use(json) where the field is given; what it throws becomes an ApiError that names the field.
  bool with(const char* field, const std::function<void(const Json&)>& use) const;
  // ApiError 422 where the field is given and is not `only`, the one value that is done here.
  void only(const char* field, const Json& only) const;

 private:
  Json json_;
};

// Ids from a list of them, in range. Throws std::invalid_argument.
Ids ids_of(const Json& list, std::int64_t vocab);
bool is_ids(const Json& value);

// What the fields of a job are held against.
struct Limits {
  const mamba::Tokenizer& tokenizer;
  std::int64_t vocab;
  std::int64_t most_tokens;  // of one text
};

// The fields that say how a text is written: temperature, top_p, top_k, min_p, repetition_penalty,
// logit_bias, seed, stop, ignore_eos, and how long it may be: the first of `length` that is given.
// ApiError 422.
void read_writing(const Body& body, const Limits& limits, const std::vector<const char*>& length,
                  std::uint64_t random_seed, Job& job);

}  // namespace server
