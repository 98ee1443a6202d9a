// What the server counts of itself, as Prometheus reads it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include <mamba/state_cache.hpp>

#include "engine.hpp"

namespace server {

class Histogram {
 public:
  static constexpr std::size_t most = 12;
  explicit Histogram(const std::array<double, most>& bounds) : bounds_(bounds) {}
  void add(double value);
  void write(const char* name, const char* help, std::string& text) const;

 private:
  std::array<double, most> bounds_;
  std::array<std::int64_t, most> counts_{};
  std::int64_t count_ = 0;
  double sum_ = 0;
};

// Any thread may count.
class Metrics {
 public:
  void request(int status);
  void first_token(double seconds);     // since the request was taken
  void tokens_per_second(double rate);  // of one text, after its first token
  struct Levels {
    Counts engine;
    std::int64_t capacity = 0, states = 0, state_bytes = 0;
    mamba::CacheCounts cache;
  };
  std::string text(const Levels& levels) const;

 private:
  mutable std::mutex mutex_;
  std::map<int, std::int64_t> requests_;
  Histogram first_token_{{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10}};
  Histogram rate_{{1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10000}};
};

}  // namespace server
