#include "host/files/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <filesystem>
#include <mutex>
#include <random>
#include <set>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include <mamba/error.hpp>

#include "host/files/folder.hpp"

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

// The lock of a temporary file; false if another process has it. A file system without locks gives
// it to everybody.
bool lock(int file, int how) {
  int result;
  do {
    result = flock(file, how);
  } while (result != 0 && errno == EINTR);
  return result == 0 || errno != EWOULDBLOCK;
}

bool synchronized(int descriptor) {
  int result;
  do {
    result = fsync(descriptor);
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

bool has_locks(int file) {
  const bool had = flock(file, LOCK_EX | LOCK_NB) == 0;
  return had || errno == EWOULDBLOCK;
}

// Who has the lock removes: a writer that has made the file and not locked it yet sees that it is
// gone, and makes another.
void remove_if_left(const std::filesystem::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return;
  struct stat found;
  if (fstat(file, &found) == 0 && S_ISREG(found.st_mode) && lock(file, LOCK_EX | LOCK_NB)) {
    constexpr time_t hour = 3600;
    if (has_locks(file) || time(nullptr) - found.st_mtime > hour) unlink(path.c_str());
  }
  close(file);
}

// Once for each folder that this process writes into. Its name counts too: a folder that is made
// after another has gone may get the other's number.
bool is_new_folder(int folder, const std::string& name) {
  static std::mutex mutex;
  static std::set<std::tuple<dev_t, ino_t, std::string>> known;
  struct stat found;
  if (fstat(folder, &found) != 0) return false;
  const std::lock_guard<std::mutex> guard(mutex);
  constexpr std::size_t most = 1024;
  if (known.size() == most) known.clear();
  return known.emplace(found.st_dev, found.st_ino, name).second;
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
    if (is_new_folder(folder_, folder)) remove_stale_temporaries(folder);
    create();
  } catch (...) {
    close(folder_);
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) unlinkat(folder_, temporary_.c_str(), 0);
  if (file_ >= 0) close(file_);
  close(folder_);
}

void AtomicFile::create() {
  constexpr int mode_bits = 07777;
  int mode = -1;
  // Renaming over a device or a pipe would replace it. A symbolic link is replaced, not followed.
  struct stat existing;
  if (fstatat(folder_, name_.c_str(), &existing, AT_SYMLINK_NOFOLLOW) == 0) {
    if (S_ISDIR(existing.st_mode)) fail(EISDIR);
    if (!S_ISREG(existing.st_mode) && !S_ISLNK(existing.st_mode)) fail(EEXIST);
    if (S_ISREG(existing.st_mode)) mode = static_cast<int>(existing.st_mode) & mode_bits;
  } else if (errno != ENOENT) {
    fail(errno);
  }
  constexpr int attempts = 100;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    if (create_temporary(mode)) return;
    if (errno != EEXIST && errno != EINTR) break;
  }
  fail(errno);
}

// Not mkstemp: its files are private to the user, and only open() applies the umask. False, with
// errno, if there is no file.
bool AtomicFile::create_temporary(int mode) {
  std::random_device random;
  temporary_ = fmt::format("{}{:08x}{:08x}{}", prefix, random(), random(), suffix);
  file_ = openat(folder_, temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC,
                 mode < 0 ? 0666 : mode & 0666);
  if (file_ < 0) {
    const int reason = errno;
    temporary_.clear();
    errno = reason;
    return false;
  }
  lock(file_, LOCK_EX);
  struct stat made;
  if (fstat(file_, &made) == 0 && made.st_nlink == 0) {  // taken for one that was left
    close(std::exchange(file_, -1));
    temporary_.clear();
    errno = EEXIST;
    return false;
  }
  // Past the umask. A file system that has no modes cannot keep one.
  if (mode >= 0) static_cast<void>(fchmod(file_, static_cast<mode_t>(mode)) == 0);
  return true;
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
  if (!synchronized(file_)) fail(errno);
  if (renameat(folder_, temporary_.c_str(), folder_, name_.c_str()) != 0) fail(errno);
  temporary_.clear();
  // The lock was held until the file had its name. What closing could say, fsync has said.
  close(std::exchange(file_, -1));
  // EINVAL: this file system cannot flush a folder, so there is nothing to wait for.
  if (!synchronized(folder_) && errno != EINVAL) fail(errno);
}

void remove_stale_temporaries(const std::string& folder) {
  each_entry(folder, [&](const std::filesystem::directory_entry& entry) {
    if (is_temporary(entry.path().filename().string())) remove_if_left(entry.path());
  });
}

void AtomicFile::fail(int reason) const {
  throw Error(where_, path_, "a file that can be written", std::generic_category().message(reason));
}

}  // namespace mamba
