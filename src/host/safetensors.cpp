#include <mamba/safetensors.hpp>

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <system_error>

#include "host/elements.hpp"
#include "host/safetensors_header.hpp"

namespace mamba {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

[[noreturn]] void cannot_read(const std::string& path, int reason) {
  throw Error("SafetensorsFile", path, "a file that can be read",
              std::generic_category().message(reason));
}

// Without O_NONBLOCK opening a pipe would wait for a writer.
int open_file(const std::string& path) {
  if (path.find('\0') != std::string::npos) cannot_read(path, EINVAL);
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) cannot_read(path, errno);
  return file;
}

std::vector<std::int64_t> without_ones(std::vector<std::int64_t> sizes) {
  sizes.erase(std::remove(sizes.begin(), sizes.end(), 1), sizes.end());
  return sizes;
}

std::vector<std::int64_t> sizes_of(const Shape& shape) {
  std::vector<std::int64_t> sizes;
  for (int i = 0; i < shape.rank(); ++i) sizes.push_back(shape[i]);
  return sizes;
}

Shape shape_of(const std::vector<std::int64_t>& sizes) {
  switch (sizes.size()) {
    case 0:
      return {1};  // a scalar: a Tensor without dimensions would be absent
    case 1:
      return {sizes[0]};
    case 2:
      return {sizes[0], sizes[1]};
    case 3:
      return {sizes[0], sizes[1], sizes[2]};
    default:
      return {sizes[0], sizes[1], sizes[2], sizes[3]};
  }
}

}  // namespace

std::string SafetensorsEntry::shape_text() const {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::optional<DType> tensor_dtype(const SafetensorsEntry& entry) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::i32}) {
    if (entry.dtype == elements::file_name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

struct SafetensorsFile::Impl {
  std::string path;
  Descriptor file;
  SafetensorsHeader header;
  std::map<std::string, std::size_t, std::less<>> index;  // of entries, by name

  explicit Impl(const std::string& file_path) : path(file_path), file(open_file(file_path)) {
    struct stat status;
    if (fstat(file.get(), &status) != 0) cannot_read(path, errno);
    if (S_ISDIR(status.st_mode)) cannot_read(path, EISDIR);
    if (!S_ISREG(status.st_mode)) cannot_read(path, ESPIPE);
    const std::int64_t file_bytes = status.st_size;
    if (file_bytes < SafetensorsHeader::length_bytes) {
      throw FormatError(path, "file", "at least 8 bytes", fmt::format("{}", file_bytes));
    }
    std::uint64_t length_field;
    read(&length_field, 0, SafetensorsHeader::length_bytes, "header length");
    const std::int64_t length = check_header_length(length_field, file_bytes, path);
    std::string text(static_cast<std::size_t>(length), '\0');
    read(text.data(), SafetensorsHeader::length_bytes, length, "header");
    header = parse_header(text, file_bytes, path);
    for (std::size_t i = 0; i < header.entries.size(); ++i) index[header.entries[i].name] = i;
    // Advice only, so its failing changes nothing: read ahead further than usual.
    posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  }

  // pread and not mmap: a file cut short meanwhile is an error and not a SIGBUS.
  void read(void* target, std::int64_t offset, std::int64_t bytes, const std::string& name) const {
    constexpr std::int64_t largest = std::int64_t{1} << 30;  // one call moves less than 2 GiB
    auto* next = static_cast<char*>(target);
    while (bytes > 0) {
      const ssize_t got =
          pread(file.get(), next, static_cast<std::size_t>(std::min(bytes, largest)), offset);
      if (got < 0) {
        if (errno == EINTR) continue;
        cannot_read(path, errno);
      }
      if (got == 0) {
        throw FormatError(path, name, fmt::format("{} more bytes", bytes), "the end of the file");
      }
      next += got;
      offset += got;
      bytes -= got;
    }
  }

  // Through a buffer that stays in the cache.
  void read_converted(const SafetensorsEntry& entry, const char* to, std::int64_t to_size,
                      void* target) const {
    constexpr std::int64_t buffer_bytes = 256 << 10;
    std::vector<unsigned char> buffer(
        static_cast<std::size_t>(std::min(buffer_bytes, entry.bytes)));
    const std::int64_t width = elements::size_of(entry.dtype);
    auto* next = static_cast<unsigned char*>(target);
    for (std::int64_t done = 0; done < entry.bytes;) {
      const std::int64_t bytes = std::min(buffer_bytes, entry.bytes - done);
      read(buffer.data(), entry.offset + done, bytes, entry.name);
      const auto bad = elements::convert(entry.dtype, to, buffer.data(), next, bytes / width);
      if (bad) {
        throw FormatError(path, entry.name, "values that fit 32 bits", fmt::format("{}", *bad));
      }
      next += bytes / width * to_size;
      done += bytes;
    }
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

SafetensorsFile::Impl& SafetensorsFile::impl() const {
  if (!impl_) throw ArgumentError("SafetensorsFile", "file", "a file", "one that was moved from");
  return *impl_;
}

const std::string& SafetensorsFile::path() const { return impl().path; }

const std::vector<SafetensorsEntry>& SafetensorsFile::entries() const {
  return impl().header.entries;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl().header.metadata;
}

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = impl().index.find(name);
  return found == impl().index.end() ? nullptr : &impl().header.entries[found->second];
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  const SafetensorsEntry* found = find(name);
  if (found == nullptr) throw FormatError(impl().path, name, "a tensor", "none");
  return *found;
}

// Here and below only the name of `wanted` is used: the rest may be of another file, or changed.
std::vector<unsigned char> SafetensorsFile::bytes(const SafetensorsEntry& wanted) const {
  const SafetensorsEntry& own = entry(wanted.name);
  std::vector<unsigned char> result(static_cast<std::size_t>(own.bytes));
  impl().read(result.data(), own.offset, own.bytes, own.name);
  return result;
}

Tensor SafetensorsFile::read(const SafetensorsEntry& wanted, const Shape& shape,
                             DType dtype) const {
  const SafetensorsEntry& own = entry(wanted.name);
  if (shape.rank() == 0 || without_ones(own.shape) != without_ones(sizes_of(shape))) {
    throw FormatError(impl().path, own.name, shape.to_string(), own.shape_text());
  }
  const char* to = elements::file_name_of(dtype);
  if (!elements::convertible(own.dtype, to)) {
    throw FormatError(impl().path, own.name,
                      dtype == DType::i32 ? "I32 or I64" : "F32, BF16, F16 or F64", own.dtype);
  }
  Tensor tensor(shape, dtype);
  if (own.dtype == to) {
    impl().read(tensor.view().data(), own.offset, own.bytes, own.name);
  } else {
    impl().read_converted(own, to, size_of(dtype), tensor.view().data());
  }
  return tensor;
}

Tensor SafetensorsFile::read(const SafetensorsEntry& wanted) const {
  const SafetensorsEntry& own = entry(wanted.name);
  std::optional<DType> dtype = tensor_dtype(own);
  if (own.dtype == "F64") dtype = DType::f32;
  if (own.dtype == "I64") dtype = DType::i32;
  if (!dtype) {
    throw FormatError(impl().path, own.name, "F32, BF16, F16, F64, I32 or I64", own.dtype);
  }
  if (own.shape.size() > static_cast<std::size_t>(Shape::max_rank)) {
    throw FormatError(impl().path, own.name, fmt::format("at most {} dimensions", Shape::max_rank),
                      own.shape_text());
  }
  return read(own, shape_of(own.shape), *dtype);
}

}  // namespace mamba
