#include "whole_file.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include <mamba/error.hpp>

namespace {

// `file` may be nullptr: it could not be opened.
std::string all_of(std::FILE* file, const char* program, const std::string& name) {
  std::string bytes;
  std::array<char, 1 << 16> part;
  std::size_t count = 0;
  while (file != nullptr && (count = std::fread(part.data(), 1, part.size(), file)) > 0) {
    bytes.append(part.data(), count);
  }
  if (file == nullptr || std::ferror(file) != 0) {
    throw mamba::Error(program, name, "a file that can be read", std::strerror(errno));
  }
  return bytes;
}

}  // namespace

std::string whole_file(const char* program, const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                             std::fclose);
  return all_of(file.get(), program, path);
}

std::string whole_input(const char* program) { return all_of(stdin, program, "standard input"); }
