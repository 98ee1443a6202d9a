// What a long run says of itself: a line that is rewritten on a terminal, a line now and then where
// nobody watches, and every number as JSON lines in a file.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
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
// Error of `program`. Any number of threads may use one at once.
class MetricsFile {
 public:
  // Goes on after what is there, but for what is no line of JSON: a kill tears the last one, and
  // what is written after that must not be glued to it.
  MetricsFile(const std::string& program, const std::string& path);
  void line(const std::string& json);
  // Leaves out lines that a run which goes on from a checkpoint writes again: those with `field`,
  // a number, of which repeated(that number, the line) is true.
  using Repeated = std::function<bool(std::int64_t number, const std::string& line)>;
  void drop_repeated(const std::string& field, const Repeated& repeated);

 private:
  void open();
  template <class Keep>
  void keep_lines(const Keep& keep);

  std::mutex mutex_;
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
