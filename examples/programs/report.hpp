// What a long run says of itself: a line that is rewritten on a terminal, a line now and then where
// nobody watches, and every number as JSON lines in a file.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

// std::snprintf into a string.
template <class... Values>
std::string format(const char* text, Values... values) {
  const int length = std::snprintf(nullptr, 0, text, values...);
  std::string out(static_cast<std::size_t>(length) + 1, '\0');
  std::snprintf(out.data(), out.size(), text, values...);
  out.pop_back();
  return out;
}

// JSON lines, each on the disk's side when the call returns. A file that cannot be written is an
// Error of `program`.
class MetricsFile {
 public:
  // Goes on after what is there.
  MetricsFile(const std::string& program, const std::string& path);
  void line(const std::string& json);

 private:
  std::string program_, path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

// "[####....] 12/100  TEXT  1:23 left", on standard error.
class ProgressLine {
 public:
  // Counted from `first`, which was reached before this run, to `end`.
  ProgressLine(std::int64_t first, std::int64_t end);

  double seconds() const;  // since this was made
  void draw(std::int64_t done, const std::string& text);
  // A line of its own beside it.
  void say(const std::string& text);

 private:
  bool terminal_;
  bool drawn_ = false;
  std::int64_t first_, end_;
  std::chrono::steady_clock::time_point start_, shown_;
};
