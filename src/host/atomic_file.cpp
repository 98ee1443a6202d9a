#include "host/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <random>
#include <string_view>
#include <system_error>
#include <utility>

#include <mamba/error.hpp>

#include "host/folder.hpp"

namespace mamba {

namespace {

constexpr std::string_view prefix = ".mamba-";  // of temporary files; 16 digits follow
constexpr std::string_view suffix = ".tmp";

bool is_temporary(std::string_view name) {
  constexpr std::size_t digits = 16;
  return name.size() == prefix.size() + digits + suffix.size() &&
         name.substr(0, prefix.size()) == prefix &&
         name.substr(name.size() - suffix.size()) == suffix &&
         name.find_first_not_of("0123456789abcdef", prefix.size()) == prefix.size() + digits;
}

}  // namespace

// The folder is held open: its name may change or be relative to a folder that does.
AtomicFile::AtomicFile(std::string where, std::string path)
    : where_(std::move(where)), path_(std::move(path)) {
  if (path_.find('\0') != std::string::npos) fail(EINVAL);
  const std::size_t slash = path_.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
  name_ = slash == std::string::npos ? path_ : path_.substr(slash + 1);
  if (name_.empty()) fail(path_.empty() ? ENOENT : EISDIR);
  folder_ = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_ < 0) fail(errno);
  try {
    create();
  } catch (...) {
    close(folder_);
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) close(file_);
  if (!temporary_.empty()) unlinkat(folder_, temporary_.c_str(), 0);
  close(folder_);
}

void AtomicFile::create() {
  // Renaming over a device or a pipe would replace it. A symbolic link is replaced, not followed.
  struct stat existing;
  if (fstatat(folder_, name_.c_str(), &existing, AT_SYMLINK_NOFOLLOW) == 0) {
    if (S_ISDIR(existing.st_mode)) fail(EISDIR);
    if (!S_ISREG(existing.st_mode) && !S_ISLNK(existing.st_mode)) fail(EEXIST);
    if (S_ISREG(existing.st_mode)) mode_ = existing.st_mode & 0777;
  } else if (errno != ENOENT) {
    fail(errno);
  }
  // Not mkstemp: its files are private to the user, and only open() applies the umask.
  constexpr int attempts = 100;
  std::random_device random;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    temporary_ = fmt::format("{}{:08x}{:08x}{}", prefix, random(), random(), suffix);
    file_ = openat(folder_, temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                   mode_.value_or(0666));
    if (file_ >= 0) return;
    if (errno != EEXIST && errno != EINTR) break;
  }
  fail(errno);
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  constexpr std::size_t largest = std::size_t{1} << 30;  // one call of Linux moves less than 2 GiB
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(file_, next, std::min(bytes, largest));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail(errno);
    }
    next += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  const auto flush = [](int descriptor) {
    int result;
    do {
      result = fsync(descriptor);
    } while (result != 0 && errno == EINTR);
    return result == 0;
  };
  // The umask took bits of it away. EPERM: this file system has no permissions to keep.
  if (mode_ && fchmod(file_, *mode_) != 0 && errno != EPERM) fail(errno);
  if (!flush(file_)) fail(errno);
  // Linux closes the descriptor even when interrupted.
  if (close(std::exchange(file_, -1)) != 0 && errno != EINTR) fail(errno);
  if (renameat(folder_, temporary_.c_str(), folder_, name_.c_str()) != 0) fail(errno);
  temporary_.clear();
  // EINVAL: this file system cannot flush a folder, so there is nothing to wait for.
  if (!flush(folder_) && errno != EINVAL) fail(errno);
}

void remove_stale_temporaries(const std::string& folder) {
  namespace fs = std::filesystem;
  const auto now = fs::file_time_type::clock::now();
  each_entry(folder, [&](const fs::directory_entry& entry) {
    if (!is_temporary(entry.path().filename().string())) return;
    std::error_code error;
    const auto written = entry.last_write_time(error);
    if (!error && now - written > std::chrono::hours(1)) fs::remove(entry.path(), error);
  });
}

void AtomicFile::fail(int reason) const {
  throw Error(where_, path_, "a file that can be written", std::generic_category().message(reason));
}

}  // namespace mamba
