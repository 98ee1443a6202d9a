// A file that appears whole or not at all.
#pragma once

#include <cstddef>
#include <string>

namespace mamba {

// Everything is written to a temporary file in the folder of `path`; commit() flushes it to the
// disk and renames it. Without commit() the destructor removes it, so an exception leaves no trace.
// A file that is replaced keeps its mode. What the system refuses is an Error "where: path:
// expected a file that can be written, got <its reason>".
//
// A program that is killed leaves its temporary file. It is locked as long as its writer lives, so
// that the next one that writes into the folder can tell, and removes it.
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
  bool create_temporary(int mode);
  [[noreturn]] void fail(int reason) const;

  std::string where_;
  std::string path_;
  std::string name_;       // within the folder
  std::string temporary_;  // within the folder; empty: there is none
  int folder_ = -1;
  int file_ = -1;
};

// Removes what programs that were killed left in a folder: temporary files that nobody has locked.
// Where the file system has no locks, those that were last written more than an hour ago.
void remove_stale_temporaries(const std::string& folder);

}  // namespace mamba
