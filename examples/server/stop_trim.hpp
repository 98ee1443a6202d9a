// Takes the stop string off the end of a text that comes in pieces: what may be the beginning of
// one is held back until it is known not to be.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace server {

class StopTrim {
 public:
  StopTrim() = default;
  explicit StopTrim(std::vector<std::string> stop) : stop_(std::move(stop)) {}

  // The text that is sure to stay.
  std::string push(const std::string& text);
  // At the end. `stopped`: a stop string has been completed by the last piece, and goes.
  std::string finish(bool stopped);

 private:
  std::vector<std::string> stop_;
  std::string held_;
};

}  // namespace server
