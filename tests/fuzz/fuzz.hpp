// What the fuzz targets share. A target gives hostile bytes to one reader of the library; what may
// come out is a value or a mamba::Error. Anything else, and whatever the sanitizers see, ends the
// program, and libFuzzer writes the input to a file.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include <mamba/error.hpp>

namespace fuzz {

inline std::string text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A promise of the reader beyond not crashing.
inline void expect(bool holds) {
  if (!holds) std::abort();
}

// Runs what may refuse its input; whether it did not.
inline bool accepted(const std::function<void()>& read) {
  try {
    read();
    return true;
  } catch (const mamba::Error&) {
    return false;
  }
}

// A file in memory that a path leads to.
class MemoryFile {
 public:
  MemoryFile() : file_(memfd_create("fuzz", MFD_CLOEXEC)) { expect(file_ >= 0); }
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void write(const std::string& bytes) {
    expect(ftruncate(file_, 0) == 0);
    expect(pwrite(file_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

// A folder in memory that goes away.
class MemoryFolder {
 public:
  MemoryFolder() : path_("/dev/shm/mamba_fuzz_" + std::to_string(getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~MemoryFolder() { std::filesystem::remove_all(path_); }
  MemoryFolder(const MemoryFolder&) = delete;
  MemoryFolder& operator=(const MemoryFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string golden_folder(const char* name) {
  return std::string(MAMBA_GOLDEN_DIR) + "/" + name;
}

}  // namespace fuzz
