#include "metrics.hpp"

#include <cstdio>

namespace server {

namespace {

std::string number(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

void describe(const char* name, const char* type, const char* help, std::string& text) {
  text += std::string("# HELP ") + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

void add(const char* name, const char* type, const char* help, std::int64_t value,
         std::string& text) {
  describe(name, type, help, text);
  text += std::string(name) + " " + std::to_string(value) + "\n";
}

}  // namespace

void Histogram::add(double value) {
  for (std::size_t i = 0; i < most; ++i) {
    if (value <= bounds_[i]) ++counts_[i];
  }
  ++count_;
  sum_ += value;
}

void Histogram::write(const char* name, const char* help, std::string& text) const {
  describe(name, "histogram", help, text);
  for (std::size_t i = 0; i < most; ++i) {
    text += std::string(name) + "_bucket{le=\"" + number(bounds_[i]) + "\"} " +
            std::to_string(counts_[i]) + "\n";
  }
  text += std::string(name) + "_bucket{le=\"+Inf\"} " + std::to_string(count_) + "\n";
  text += std::string(name) + "_sum " + number(sum_) + "\n";
  text += std::string(name) + "_count " + std::to_string(count_) + "\n";
}

void Metrics::request(int status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++requests_[status];
}

void Metrics::first_token(double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  first_token_.add(seconds);
}

void Metrics::tokens_per_second(double rate) {
  const std::lock_guard<std::mutex> lock(mutex_);
  rate_.add(rate);
}

std::string Metrics::text(const Levels& levels) const {
  std::string text;
  const std::lock_guard<std::mutex> lock(mutex_);
  describe("mamba_requests_total", "counter", "Requests that were answered, by status.", text);
  for (const auto& [status, count] : requests_) {
    text += "mamba_requests_total{status=\"" + std::to_string(status) + "\"} " +
            std::to_string(count) + "\n";
  }
  const Counts& engine = levels.engine;
  add("mamba_tokens_read_total", "counter", "Tokens of prompts that were read.", engine.read, text);
  add("mamba_tokens_known_total", "counter", "Tokens of prompts that did not have to be read.",
      engine.known, text);
  add("mamba_tokens_written_total", "counter", "Tokens that were written.", engine.written, text);
  add("mamba_steps_total", "counter", "Steps of all texts together.", engine.steps, text);
  add("mamba_rows", "gauge", "Texts that can go through the model together.", levels.capacity,
      text);
  add("mamba_rows_in_use", "gauge", "Texts that go through the model now.", engine.running, text);
  add("mamba_waiting", "gauge", "Texts that wait for a place.", engine.waiting, text);
  add("mamba_states", "gauge", "States that are kept.", levels.states, text);
  add("mamba_state_bytes", "gauge", "Bytes of the states that are kept.", levels.state_bytes, text);
  add("mamba_cache_hits_total", "counter", "Prompts whose beginning was known.", levels.cache.hits,
      text);
  add("mamba_cache_misses_total", "counter", "Prompts whose beginning was not known.",
      levels.cache.misses, text);
  add("mamba_cache_bytes", "gauge", "Bytes of beginnings that are known.",
      levels.cache.device_bytes + levels.cache.host_bytes + levels.cache.disk_bytes, text);
  first_token_.write("mamba_time_to_first_token_seconds",
                     "From a request to the first token of its text.", text);
  rate_.write("mamba_text_tokens_per_second", "Of one text, after its first token.", text);
  return text;
}

}  // namespace server
