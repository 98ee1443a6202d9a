// What a training run says of itself: a line that is rewritten on a terminal, a line now and then
// where nobody watches, and every number as JSON lines in a file.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

class Report {
 public:
  // Metrics are appended to the file at `path`. Bytes are counted from here on.
  Report(const std::string& path, std::int64_t first_step, std::int64_t steps,
         std::int64_t bytes_per_step);

  void step(std::int64_t step, double loss, double norm, double rate);
  void validation(std::int64_t step, double bits_per_byte);
  // Text that is shown beside the line.
  void say(const std::string& text);

 private:
  void line(const std::string& json);
  void draw(std::int64_t step, double bits, double speed);

  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::string path_;
  bool terminal_;
  bool drawn_ = false;
  std::int64_t first_, steps_, bytes_per_step_;
  std::chrono::steady_clock::time_point start_, shown_;
  double smooth_ = 0;  // the loss, averaged over about the last twenty steps
};
