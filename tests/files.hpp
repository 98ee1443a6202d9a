// Files for tests: a folder that goes away, whole files as strings, damage, and a disk that is
// full.
#pragma once

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <mamba/error.hpp>

#include "testing.hpp"

namespace mamba::testing {

// What lies in a folder, in order.
inline std::vector<std::string> names(const TemporaryFolder& folder) {
  std::vector<std::string> list;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    list.push_back(entry.path().filename().string());
  }
  std::sort(list.begin(), list.end());
  return list;
}

inline void clear(const TemporaryFolder& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    std::filesystem::remove_all(entry.path());
  }
}

// Not over an old file: some file systems flush one that is made shorter, which takes milliseconds.
inline void write_file(const std::string& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// While it lives, no file can grow beyond `bytes`, as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_;
};

// `open(path)` of every file cut short is a FormatError.
template <class Open>
void expect_cuts_refused(const TemporaryFolder& folder, const std::string& bytes, Open open) {
  const std::string path = folder.file("cut");
  for (std::size_t length = 0; length < bytes.size(); length += 97) {
    write_file(path, bytes.substr(0, length));
    EXPECT_THROW(open(path), FormatError) << length << " of " << bytes.size() << " bytes";
  }
}

// `open(path)` of a file with random damage in its first `reach` bytes either works or is a
// FormatError. Returns how many were refused.
template <class Open>
int count_refused(const TemporaryFolder& folder, const std::string& bytes, std::size_t reach,
                  int trials, Open open) {
  const std::string path = folder.file("damaged");
  const std::string telling = "{}[]\",:0123456789.-eE\\ \n";
  Random random(7);
  const auto below = [&](std::size_t n) {
    return static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(n) - 1));
  };
  int refused = 0;
  for (int trial = 0; trial < trials; ++trial) {
    std::string damaged = bytes;
    for (std::size_t change = 0; change <= below(3); ++change) {
      const std::size_t at = below(std::min(reach, damaged.size()));
      switch (below(5)) {
        case 0:
          damaged[at] = static_cast<char>(damaged[at] ^ (1 << below(8)));
          break;
        case 1:
          damaged[at] = telling[below(telling.size())];
          break;
        case 2:
          damaged.erase(at, 1 + below(4));
          break;
        case 3:
          damaged.insert(at, 1, telling[below(telling.size())]);
          break;
        default:
          damaged.insert(at, damaged.substr(below(damaged.size()), below(40)));
      }
    }
    write_file(path, damaged);
    try {
      open(path);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace mamba::testing
