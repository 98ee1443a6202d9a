// XXH3, 128 bits, of bytes in pieces.
#pragma once

#define XXH_INLINE_ALL
#include <fmt/format.h>
#include <xxhash.h>

#include <cstdint>
#include <string>

namespace mamba {

// 32 hexadecimal digits.
inline std::string text_of(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

class Hash {
 public:
  Hash() { XXH3_128bits_reset(&state_); }
  void add(const void* data, std::int64_t bytes) {
    if (bytes > 0) XXH3_128bits_update(&state_, data, static_cast<std::size_t>(bytes));
  }
  void add(const std::string& text) {
    XXH3_128bits_update(&state_, text.c_str(), text.size() + 1);  // the 0 ends it
  }
  XXH128_hash_t get() const { return XXH3_128bits_digest(&state_); }
  std::string text() const { return text_of(get()); }

 private:
  XXH3_state_t state_;
};

}  // namespace mamba
