// Files that are read, which may be cut short meanwhile, or be no files at all; and bytes in memory
// in the place of one.
#pragma once

#include <cstdint>
#include <string>

#include <mamba/bytes.hpp>

namespace mamba {

// A file that is open. What the system refuses is an Error "where: path: expected a file that can
// be read, got <its reason>"; so is a folder, a link to nothing, and a pipe or device, for which it
// does not wait. A Git LFS pointer in a file's place is a FormatError.
class InputFile {
 public:
  InputFile(std::string where, std::string path);
  // Bytes, which must outlive this, with a name that stands for the path.
  InputFile(std::string where, ByteView memory, std::string name);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  std::int64_t bytes() const { return bytes_; }  // as it was opened
  // Copies `bytes` bytes from `offset` on. An end of the file before that of these bytes is a
  // FormatError that calls them `name`.
  void read(void* target, std::int64_t offset, std::int64_t bytes, const std::string& name) const;
  // All of a text, of which one that no memory should be taken for is a FormatError.
  std::string text() const;
  // Advice for a file that is read from its beginning to its end.
  void expect_all_read() const;

 private:
  void refuse_pointer() const;
  std::int64_t read_some(void* target, std::int64_t offset, std::int64_t bytes) const;
  [[noreturn]] void fail(int reason) const;

  std::string where_;
  std::string path_;
  int file_ = -1;  // none: memory_
  ByteView memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace mamba
