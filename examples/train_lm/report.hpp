// What a training run of a language model says of itself.
#pragma once

#include <cstdint>
#include <string>

#include "../programs/report.hpp"

class Report {
 public:
  // Metrics are appended to the file at `path`, in which those that this run will write again are
  // left out. Bytes are counted from here on.
  Report(const std::string& path, std::int64_t first_step, std::int64_t steps,
         std::int64_t bytes_per_step);

  void step(std::int64_t step, double loss, double norm, double rate);
  void validation(std::int64_t step, double bits_per_byte);
  // Text that is shown beside the line.
  void say(const std::string& text) { progress_.say(text); }

 private:
  MetricsFile metrics_;
  ProgressLine progress_;
  std::int64_t first_, bytes_per_step_;
  double smooth_ = 0;  // the loss, averaged over about the last twenty steps
};
