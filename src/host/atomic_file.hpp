// A file that appears whole or not at all.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <optional>
#include <string>

namespace mamba {

// Everything is written to a temporary file in the folder of `path`; commit() flushes it to the
// disk and renames it. A file that is replaced keeps its permissions. Without commit() the
// destructor removes it, so an exception leaves no trace. What the system refuses is an Error
// "where: path: expected a file that can be written, got <its reason>".
class AtomicFile {
 public:
  AtomicFile(std::string where, std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t bytes);
  void commit();

 private:
  void create();
  [[noreturn]] void fail(int reason) const;

  std::string where_;
  std::string path_;
  std::string name_;            // within the folder
  std::string temporary_;       // within the folder; empty: there is none
  std::optional<mode_t> mode_;  // of the file that is replaced
  int folder_ = -1;
  int file_ = -1;
};

// Removes what programs that were killed left in a folder: temporary files that were last written
// more than an hour ago. Others may be another process's, at work.
void remove_stale_temporaries(const std::string& folder);

}  // namespace mamba
