#include "stop_trim.hpp"

#include <algorithm>

namespace server {

namespace {

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

std::string StopTrim::push(const std::string& text) {
  if (stop_.empty()) return text;
  held_ += text;
  std::size_t keep = 0;  // bytes at the end that begin a stop string, or are one
  for (const std::string& stop : stop_) {
    for (std::size_t count = std::min(stop.size(), held_.size()); count > keep; --count) {
      if (ends_with(held_, stop.substr(0, count))) keep = count;
    }
  }
  std::string sure = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return sure;
}

// One that had begun in an earlier text is all that is held back.
std::string StopTrim::finish(bool stopped) {
  if (!stopped) return std::exchange(held_, {});
  std::size_t longest = 0;
  for (const std::string& stop : stop_) {
    if (ends_with(held_, stop)) longest = std::max(longest, stop.size());
  }
  const std::string rest = longest > 0 ? held_.substr(0, held_.size() - longest) : std::string();
  held_.clear();
  return rest;
}

}  // namespace server
