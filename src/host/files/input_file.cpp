#include "host/files/input_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include <mamba/error.hpp>

namespace mamba {

InputFile::InputFile(std::string where, std::string path)
    : where_(std::move(where)), path_(std::move(path)) {
  if (path_.find('\0') != std::string::npos) fail(EINVAL);
  // Without O_NONBLOCK opening a pipe would wait for a writer.
  file_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) fail(errno);
  struct stat status;
  int reason = fstat(file_, &status) != 0 ? errno : 0;
  if (reason == 0 && S_ISDIR(status.st_mode)) reason = EISDIR;
  if (reason == 0 && !S_ISREG(status.st_mode)) reason = ESPIPE;
  if (reason != 0) {
    close(file_);
    fail(reason);
  }
  bytes_ = status.st_size;
  refuse_pointer();
}

InputFile::InputFile(std::string where, ByteView memory, std::string name)
    : where_(std::move(where)),
      path_(std::move(name)),
      memory_(memory),
      bytes_(static_cast<std::int64_t>(memory.size())) {
  refuse_pointer();
}

// The text that Git leaves in place of a file that git-lfs was to download.
void InputFile::refuse_pointer() const {
  constexpr std::string_view beginning = "version https://git-lfs.github.com/spec/";
  constexpr std::int64_t longest = 1024;  // of a pointer, by its specification
  std::array<char, beginning.size()> text;
  if (bytes_ > longest || bytes_ < static_cast<std::int64_t>(text.size())) return;
  if (read_some(text.data(), 0, static_cast<std::int64_t>(text.size())) !=
      static_cast<std::int64_t>(text.size())) {
    return;
  }
  if (std::string_view(text.data(), text.size()) != beginning) return;
  if (file_ >= 0) close(file_);
  throw FormatError(path_, "file", "its contents",
                    "a Git LFS pointer: the file was not downloaded (git lfs pull does it)");
}

InputFile::~InputFile() {
  if (file_ >= 0) close(file_);
}

// As pread() gives them: less than asked for, none at the end, -1 with errno.
std::int64_t InputFile::read_some(void* target, std::int64_t offset, std::int64_t bytes) const {
  if (file_ >= 0) return pread(file_, target, static_cast<std::size_t>(bytes), offset);
  const std::int64_t count = std::min(bytes, bytes_ - offset);
  if (count <= 0) return 0;
  std::copy_n(static_cast<const char*>(memory_.data()) + offset, count, static_cast<char*>(target));
  return count;
}

// pread and not mmap: a file cut short meanwhile is an error and not a SIGBUS.
void InputFile::read(void* target, std::int64_t offset, std::int64_t bytes,
                     const std::string& name) const {
  constexpr std::int64_t largest = std::int64_t{1} << 30;  // one call moves less than 2 GiB
  auto* next = static_cast<char*>(target);
  while (bytes > 0) {
    const std::int64_t got = read_some(next, offset, std::min(bytes, largest));
    if (got < 0) {
      if (errno == EINTR) continue;
      fail(errno);
    }
    if (got == 0) {
      throw FormatError(path_, name, fmt::format("{} more bytes", bytes), "the end of the file");
    }
    next += got;
    offset += got;
    bytes -= got;
  }
}

std::string InputFile::text() const {
  constexpr std::int64_t largest = std::int64_t{1} << 28;
  if (bytes_ > largest) {
    throw FormatError(path_, "file", fmt::format("at most {} bytes", largest),
                      fmt::format("{}", bytes_));
  }
  std::string text(static_cast<std::size_t>(bytes_), '\0');
  read(text.data(), 0, bytes_, "file");
  return text;
}

void InputFile::expect_all_read() const {
  if (file_ >= 0) posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL);
}

void InputFile::fail(int reason) const {
  std::error_code error;
  const auto target = std::filesystem::read_symlink(path_, error);
  if (reason == ENOENT && !error) {
    throw Error(where_, path_, "a file that can be read",
                "a link to " + target.string() + ", where nothing is");
  }
  throw Error(where_, path_, "a file that can be read", std::generic_category().message(reason));
}

}  // namespace mamba
