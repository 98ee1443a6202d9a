#include "host/files/safetensors_header.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "host/core/elements.hpp"
#include "host/core/json.hpp"

namespace mamba {
namespace {

// Reads the header as a stream of JSON events and not as a tree, because a tree of a hostile 100 MB
// takes gigabytes and hides keys that are there twice. Whatever is not expected is refused at once.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderReader(const std::string& path) : path_(path) {}

  SafetensorsHeader header;  // offsets are relative to the data until they are checked

  bool key(string_t& text) override {
    if (place_ == Place::tensors) return start_entry(text);
    if (!keys_.insert(text).second)
      refuse(subject(), "keys given once", in_quotes(text) + " twice");
    key_ = text;
    if (place_ == Place::tensor && text != "dtype" && text != "shape" && text != "data_offsets") {
      refuse(subject(), "dtype, shape and data_offsets", in_quotes(text));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (place_ == Place::outside) {
      place_ = Place::tensors;
    } else if (place_ == Place::tensors) {
      place_ = name_ == metadata_name ? Place::metadata : Place::tensor;
      keys_.clear();
    } else {
      unexpected("an object");
    }
    return true;
  }

  bool end_object() override {
    if (place_ == Place::tensor) finish_entry();
    place_ = place_ == Place::tensors ? Place::outside : Place::tensors;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::tensor || key_ == "dtype") unexpected("a list");
    place_ = key_ == "shape" ? Place::shape : Place::offsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::tensor;
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::metadata) {
      header.metadata.emplace(key_, text);
    } else if (place_ == Place::tensor && key_ == "dtype") {
      if (elements::bits_of(text) == 0) refuse(name_, "a known dtype", in_quotes(text));
      entry_.dtype = text;
    } else {
      unexpected(in_quotes(text));
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::shape && place_ != Place::offsets) unexpected(fmt::format("{}", value));
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      unexpected(fmt::format("{}", value));
    }
    const auto size = static_cast<std::int64_t>(value);
    if (place_ == Place::shape) {
      if (entry_.shape.size() == most_dimensions) {
        refuse(name_, fmt::format("at most {} dimensions", most_dimensions), "more");
      }
      entry_.shape.push_back(size);
    } else {
      if (offsets_.size() == 2) refuse(name_, "two data_offsets", "more");
      offsets_.push_back(size);
    }
    return true;
  }

  bool null() override { return unexpected("null"); }
  bool boolean(bool value) override { return unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return unexpected(fmt::format("{}", value));
  }
  bool number_float(number_float_t, const string_t& text) override { return unexpected(text); }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool parse_error(std::size_t byte, const std::string&,
                   const nlohmann::detail::exception&) override {
    refuse("header", "valid JSON", fmt::format("an error at byte {}", byte));
  }

 private:
  enum class Place { outside, tensors, metadata, tensor, shape, offsets };
  static constexpr const char* metadata_name = "__metadata__";
  static constexpr std::size_t most_dimensions = 64;

  bool start_entry(const std::string& name) {
    if (!names_.insert(name).second) refuse(in_quotes(name), "a tensor given once", "it twice");
    name_ = name;
    entry_ = {};
    entry_.name = name;
    offsets_.clear();
    return true;
  }

  void finish_entry() {
    for (const char* needed : {"dtype", "shape", "data_offsets"}) {
      if (keys_.count(needed) == 0) refuse(name_, needed, "none");
    }
    if (offsets_.size() != 2) {
      refuse(name_, "two data_offsets", fmt::format("{}", offsets_.size()));
    }
    if (offsets_[0] > offsets_[1]) {
      refuse(name_, "data_offsets in order", fmt::format("[{}, {}]", offsets_[0], offsets_[1]));
    }
    entry_.offset = offsets_[0];
    entry_.bytes = offsets_[1] - offsets_[0];
    check_size();
    header.entries.push_back(std::move(entry_));
  }

  // A size of 0 does not excuse the others: their product must fit as well.
  void check_size() const {
    const std::int64_t bits = elements::bits_of(entry_.dtype);
    const std::int64_t parts = bits % 8 == 0 ? 1 : 8;  // of a byte: elements may share one
    std::int64_t bytes = bits * parts / 8;
    bool empty = false;
    for (const std::int64_t size : entry_.shape) {
      empty |= size == 0;
      if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes)) {
        refuse(name_, "fewer than 2^63 bytes", "shape " + entry_.shape_text());
      }
    }
    if (empty) bytes = 0;
    if (bytes % parts != 0) refuse(name_, "whole bytes", entry_.dtype + " " + entry_.shape_text());
    bytes /= parts;
    if (bytes != entry_.bytes) {
      refuse(name_, fmt::format("{} bytes for {} {}", bytes, entry_.dtype, entry_.shape_text()),
             fmt::format("{}", entry_.bytes));
    }
  }

  std::string subject() const { return place_ == Place::metadata ? metadata_name : name_; }

  bool unexpected(const std::string& got) const {
    switch (place_) {
      case Place::outside:
        refuse("header", "an object", got);
      case Place::tensors:
        refuse(name_, "an object", got);
      case Place::metadata:
        refuse(metadata_name, "text for " + in_quotes(key_), got);
      case Place::tensor:
        refuse(name_, key_ == "dtype" ? "text for dtype" : "a list for " + key_, got);
      default:
        refuse(name_, "whole numbers in " + key_, got);
    }
  }

  [[noreturn]] void refuse(const std::string& name, const std::string& expected,
                           const std::string& got) const {
    throw FormatError(path_, name, expected, got);
  }

  const std::string& path_;
  Place place_ = Place::outside;
  std::set<std::string> names_;  // of all tensors so far
  std::set<std::string> keys_;   // of the object that is open
  std::string name_;
  std::string key_;
  SafetensorsEntry entry_;
  std::vector<std::int64_t> offsets_;
};

// Sorts by place, and checks that each tensor begins where the one before ends and the last at the
// end.
void check_layout(std::vector<SafetensorsEntry>& entries, std::int64_t data_bytes,
                  const std::string& path) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  std::int64_t end = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != end) {
      throw FormatError(path, entry.name, fmt::format("data from byte {}", end),
                        fmt::format("{}", entry.offset));
    }
    if (entry.bytes > data_bytes - end) {
      throw FormatError(path, entry.name, fmt::format("data within {} bytes", data_bytes),
                        fmt::format("data to byte {}", end + entry.bytes));
    }
    end += entry.bytes;
  }
  if (end != data_bytes) {
    throw FormatError(path, "data", fmt::format("{} bytes", end), fmt::format("{}", data_bytes));
  }
}

}  // namespace

std::int64_t check_header_length(std::uint64_t length_field, std::int64_t file_bytes,
                                 const std::string& path) {
  const std::int64_t room = file_bytes - SafetensorsHeader::length_bytes;
  const std::int64_t most = std::min(room, SafetensorsHeader::longest);
  if (length_field < 2 || length_field > static_cast<std::uint64_t>(most)) {
    throw FormatError(path, "header length", fmt::format("2 to {}", most),
                      fmt::format("{}", length_field));
  }
  return static_cast<std::int64_t>(length_field);
}

SafetensorsHeader parse_header(std::string_view text, std::int64_t file_bytes,
                               const std::string& path) {
  if (text.empty() || text.front() != '{') {
    throw FormatError(path, "header", "an object", "something else");
  }
  // The parser takes a NUL for the end and would not look at what follows.
  if (const auto nul = text.find('\0'); nul != std::string_view::npos) {
    throw FormatError(path, "header", "text", fmt::format("a NUL at byte {}", nul));
  }
  HeaderReader reader(path);
  nlohmann::json::sax_parse(text.begin(), text.end(), &reader);
  SafetensorsHeader header = std::move(reader.header);
  const std::int64_t data =
      SafetensorsHeader::length_bytes + static_cast<std::int64_t>(text.size());
  check_layout(header.entries, file_bytes - data, path);
  for (SafetensorsEntry& entry : header.entries) entry.offset += data;
  return header;
}

}  // namespace mamba
