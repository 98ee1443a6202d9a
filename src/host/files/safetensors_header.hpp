// The header of a safetensors file: what it says, checked against the size of the file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/safetensors.hpp>

namespace mamba {

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in order of their data
  std::map<std::string, std::string> metadata;

  static constexpr std::int64_t length_bytes = 8;
  static constexpr std::int64_t longest = 100'000'000;  // the limit of the reference implementation
};

// `length_field` as in the first 8 bytes. A length that cannot be is a FormatError; `path` names
// the file in all of them.
std::int64_t check_header_length(std::uint64_t length_field, std::int64_t file_bytes,
                                 const std::string& path);

// `text` is the JSON between the length and the data.
SafetensorsHeader parse_header(std::string_view text, std::int64_t file_bytes,
                               const std::string& path);

}  // namespace mamba
