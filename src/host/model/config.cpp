#include <mamba/config.hpp>

#include <fmt/format.h>

#include <mamba/error.hpp>

#include "host/model/config_checks.hpp"

namespace mamba {
namespace {

void range(const Complain& complain, const char* field, std::int64_t value, std::int64_t low,
           std::int64_t high) {
  if (value < low || value > high) {
    complain(field, fmt::format("{} to {}", low, high), fmt::format("{}", value));
  }
}

// The factors are at most 2 * limits::size and limits::size, or limits::size and 512 more than it,
// so the product stays below 2^63.
void product(const Complain& complain, const char* fields, std::int64_t a, std::int64_t b) {
  range(complain, fields, a * b, 1, limits::elements);
}

// Written so that NaN fails.
void between(const Complain& complain, const char* field, float value, float low,
             const char* expected) {
  if (!(value >= low && value <= limits::largest))
    complain(field, expected, fmt::format("{}", value));
}

void positive(const Complain& complain, const char* field, float value) {
  between(complain, field, value, limits::smallest, "a positive number");
}

Complain argument_error(const char* where) {
  return [where](const std::string& field, const std::string& expected, const std::string& got) {
    throw ArgumentError(where, field, expected, got);
  };
}

}  // namespace

LayerConfig resolve(LayerConfig c, const Complain& complain) {
  range(complain, "d_model", c.d_model, 1, limits::size);
  range(complain, "d_state", c.d_state, 1, limits::d_state);
  range(complain, "d_conv", c.d_conv, 1, limits::size);
  range(complain, "expand", c.expand, 1, limits::size);
  if (c.d_inner == 0) c.d_inner = c.expand * c.d_model;
  if (c.dt_rank == 0) c.dt_rank = (c.d_model + 15) / 16;
  range(complain, "d_inner", c.d_inner, 1, limits::size);
  range(complain, "dt_rank", c.dt_rank, 1, limits::size);
  product(complain, "2 * d_inner * d_model", 2 * c.d_inner, c.d_model);
  product(complain, "d_inner * d_conv", c.d_inner, c.d_conv);
  product(complain, "d_inner * (dt_rank + 2 * d_state)", c.d_inner, c.dt_rank + 2 * c.d_state);
  positive(complain, "norm_dt_b_c_epsilon", c.norm_dt_b_c_epsilon);
  positive(complain, "gated_norm_epsilon", c.gated_norm_epsilon);
  between(complain, "initial_D", c.initial_D, -limits::largest, "a number");
  positive(complain, "dt_min", c.dt_min);
  between(complain, "dt_max", c.dt_max, c.dt_min, "a number of at least dt_min");
  positive(complain, "dt_floor", c.dt_floor);
  positive(complain, "dt_scale", c.dt_scale);
  return c;
}

ModelConfig resolve(ModelConfig c, const Complain& complain) {
  c.layer = resolve(c.layer, complain);
  range(complain, "n_layer", c.n_layer, 1, limits::n_layer);
  range(complain, "vocab_size", c.vocab_size, 1, limits::size);
  if (c.vocab_rows == 0) c.vocab_rows = (c.vocab_size + 7) / 8 * 8;
  range(complain, "vocab_rows", c.vocab_rows, c.vocab_size, limits::size);
  product(complain, "vocab_rows * d_model", c.vocab_rows, c.layer.d_model);
  positive(complain, "norm_epsilon", c.norm_epsilon);
  for (const std::int32_t id : c.eos_token_ids) {
    range(complain, "eos_token_ids", id, 0, limits::size);
  }
  return c;
}

LayerConfig LayerConfig::resolved() const { return resolve(*this, argument_error("LayerConfig")); }

ModelConfig ModelConfig::resolved() const { return resolve(*this, argument_error("ModelConfig")); }

}  // namespace mamba
