#include "output.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include <mamba/error.hpp>

void write_output(const char* program, std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw OutputClosed();
  throw mamba::Error(program, "standard output", "that it can be written", std::strerror(errno));
}
