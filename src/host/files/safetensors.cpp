#include <mamba/safetensors.hpp>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>

#include "host/core/elements.hpp"
#include "host/files/input_file.hpp"
#include "host/files/safetensors_header.hpp"

namespace mamba {
namespace {

std::vector<std::int64_t> without_ones(std::vector<std::int64_t> sizes) {
  sizes.erase(std::remove(sizes.begin(), sizes.end(), 1), sizes.end());
  return sizes;
}

std::vector<std::int64_t> sizes_of(const Shape& shape) {
  std::vector<std::int64_t> sizes;
  sizes.reserve(static_cast<std::size_t>(shape.rank()));
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
  InputFile file;
  SafetensorsHeader header;
  std::map<std::string, std::size_t, std::less<>> index;  // of entries, by name

  explicit Impl(const std::string& path) : file("SafetensorsFile", path) { open(); }
  Impl(ByteView bytes, std::string name) : file("SafetensorsFile", bytes, std::move(name)) {
    open();
  }

  void open() {
    const std::string& path = file.path();
    if (file.bytes() < SafetensorsHeader::length_bytes) {
      throw FormatError(path, "file", "at least 8 bytes", fmt::format("{}", file.bytes()));
    }
    std::uint64_t length_field;
    file.read(&length_field, 0, SafetensorsHeader::length_bytes, "header length");
    const std::int64_t length = check_header_length(length_field, file.bytes(), path);
    std::string text(static_cast<std::size_t>(length), '\0');
    file.read(text.data(), SafetensorsHeader::length_bytes, length, "header");
    header = parse_header(text, file.bytes(), path);
    for (std::size_t i = 0; i < header.entries.size(); ++i) index[header.entries[i].name] = i;
    file.expect_all_read();
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
      file.read(buffer.data(), entry.offset + done, bytes, entry.name);
      const auto bad = elements::convert(entry.dtype, to, buffer.data(), next, bytes / width);
      if (bad) {
        throw FormatError(file.path(), entry.name, "values that fit 32 bits",
                          fmt::format("{}", *bad));
      }
      next += bytes / width * to_size;
      done += bytes;
    }
  }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : impl_(std::make_unique<Impl>(path)) {}
SafetensorsFile::SafetensorsFile(ByteView bytes, std::string name)
    : impl_(std::make_unique<Impl>(bytes, std::move(name))) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

SafetensorsFile::Impl& SafetensorsFile::impl() const {
  if (!impl_) throw ArgumentError("SafetensorsFile", "file", "a file", "one that was moved from");
  return *impl_;
}

const std::string& SafetensorsFile::path() const { return impl().file.path(); }

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
  if (found == nullptr) throw FormatError(impl().file.path(), name, "a tensor", "none");
  return *found;
}

// Here and below only the name of `wanted` is used: the rest may be of another file, or changed.
std::vector<unsigned char> SafetensorsFile::bytes(const SafetensorsEntry& wanted) const {
  const SafetensorsEntry& own = entry(wanted.name);
  std::vector<unsigned char> result(static_cast<std::size_t>(own.bytes));
  impl().file.read(result.data(), own.offset, own.bytes, own.name);
  return result;
}

Tensor SafetensorsFile::read(const SafetensorsEntry& wanted, const Shape& shape,
                             DType dtype) const {
  const SafetensorsEntry& own = entry(wanted.name);
  if (shape.rank() == 0 || without_ones(own.shape) != without_ones(sizes_of(shape))) {
    throw FormatError(impl().file.path(), own.name, shape.to_string(), own.shape_text());
  }
  const char* to = elements::file_name_of(dtype);
  if (!elements::convertible(own.dtype, to)) {
    throw FormatError(impl().file.path(), own.name,
                      dtype == DType::i32 ? "I32 or I64" : "F32, BF16, F16 or F64",
                      elements::spoken(own.dtype));
  }
  Tensor tensor(shape, dtype);
  if (own.dtype == to) {
    impl().file.read(tensor.view().data(), own.offset, own.bytes, own.name);
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
    throw FormatError(impl().file.path(), own.name, "F32, BF16, F16, F64, I32 or I64",
                      elements::spoken(own.dtype));
  }
  if (own.shape.size() > static_cast<std::size_t>(Shape::max_rank)) {
    throw FormatError(impl().file.path(), own.name,
                      fmt::format("at most {} dimensions", Shape::max_rank), own.shape_text());
  }
  return read(own, shape_of(own.shape), *dtype);
}

}  // namespace mamba
