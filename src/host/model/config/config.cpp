#include <mamba/config.hpp>

#include <fmt/format.h>

#include <mamba/error.hpp>

#include "host/model/config/config_checks.hpp"
#include "host/model/mixers.hpp"

namespace mamba {

namespace limits {

void range(const Complain& complain, const char* field, std::int64_t value, std::int64_t low,
           std::int64_t high) {
  if (value < low || value > high) {
    complain(field, fmt::format("{} to {}", low, high), fmt::format("{}", value));
  }
}

// The factors are at most 2 * size and size, or size and 512 more than it, so the product stays
// below 2^63.
void product(const Complain& complain, const char* fields, std::int64_t a, std::int64_t b) {
  range(complain, fields, a * b, 1, elements);
}

// Written so that NaN fails.
void between(const Complain& complain, const char* field, float value, float low,
             const char* expected) {
  if (!(value >= low && value <= largest)) complain(field, expected, fmt::format("{}", value));
}

void positive(const Complain& complain, const char* field, float value) {
  between(complain, field, value, smallest, "a positive number");
}

}  // namespace limits

namespace {

Complain argument_error(const char* where) {
  return [where](const std::string& field, const std::string& expected, const std::string& got) {
    throw ArgumentError(where, field, expected, got);
  };
}

}  // namespace

LayerConfig resolve(LayerConfig config, const Complain& complain) {
  return host_mixer(config).resolve(config, complain);
}

LanguageModelConfig resolve(LanguageModelConfig c, const Complain& complain) {
  c.layer = resolve(c.layer, complain);
  limits::range(complain, "n_layer", c.n_layer, 1, limits::n_layer);
  limits::range(complain, "vocab_size", c.vocab_size, 1, limits::size);
  if (c.vocab_rows == 0) c.vocab_rows = (c.vocab_size + 7) / 8 * 8;
  limits::range(complain, "vocab_rows", c.vocab_rows, c.vocab_size, limits::size);
  limits::product(complain, "vocab_rows * d_model", c.vocab_rows, c.layer.d_model);
  limits::positive(complain, "norm_epsilon", c.norm_epsilon);
  for (const std::int32_t id : c.eos_token_ids) {
    limits::range(complain, "eos_token_ids", id, 0, limits::size);
  }
  return c;
}

LayerConfig LayerConfig::resolved() const { return resolve(*this, argument_error("LayerConfig")); }

LanguageModelConfig LanguageModelConfig::resolved() const {
  return resolve(*this, argument_error("LanguageModelConfig"));
}

}  // namespace mamba
