// How many threads this process has.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <string>

namespace mamba::testing {

inline int process_threads() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("Threads:", 0) == 0) return std::stoi(line.substr(8));
  }
  ADD_FAILURE() << "no Threads: in /proc/self/status";
  return 0;
}

}  // namespace mamba::testing
