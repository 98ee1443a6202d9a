// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): random numbers as a function of a key and a
// counter, with no state between calls, so that every device draws the same ones in any order.
#pragma once

#include <cstdint>

// Of functions that kernels call too.
#ifdef __CUDACC__
#define MAMBA_HOST_AND_DEVICE __host__ __device__
#else
#define MAMBA_HOST_AND_DEVICE
#endif

namespace mamba::detail {

// Not std::array, whose functions are the host's.
struct PhiloxWords {
  std::uint32_t at[4];

  MAMBA_HOST_AND_DEVICE constexpr std::uint32_t operator[](int i) const { return at[i]; }
};
constexpr bool operator==(const PhiloxWords& a, const PhiloxWords& b) {
  return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

// The key's words are the lower and the upper half of `key`.
MAMBA_HOST_AND_DEVICE constexpr PhiloxWords philox(std::uint64_t key, PhiloxWords counter) {
  constexpr int rounds = 10;
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(a)};
    key0 += 0x9E3779B9;  // the golden ratio
    key1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

// A uniform number in [0, 1): words 0 (high) and 1 (low) are 64 bits, the upper 53 of them count
// steps of 2^-53.
MAMBA_HOST_AND_DEVICE constexpr double uniform(const PhiloxWords& words) {
  const std::uint64_t bits = std::uint64_t{words[0]} << 32 | words[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace mamba::detail

#undef MAMBA_HOST_AND_DEVICE
