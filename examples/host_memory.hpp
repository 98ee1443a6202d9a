// How much memory a program can count on.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>

// Bytes: the machine's, or what its container (control groups 2 and 1) may have of them.
inline std::int64_t host_memory() {
  std::int64_t bytes = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGE_SIZE);
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::int64_t limit = 0;  // "max" is no number
    if (std::ifstream(path) >> limit && limit > 0) bytes = std::min(bytes, limit);
  }
  return bytes;
}
