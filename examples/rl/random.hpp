// Random numbers as a function of a key and a counter, the same on the host and in CUDA kernels:
// these functions are constexpr so that nvcc compiles them for both (--expt-relaxed-constexpr).
#pragma once

#include <cmath>
#include <cstdint>

namespace mamba_rl {

struct RandomWords {
  std::uint32_t a, b, c, d;
};

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011).
constexpr RandomWords philox(std::uint64_t key, RandomWords counter) {
  constexpr int rounds = 10;
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t p = std::uint64_t{0xD2511F53} * counter.a;
    const std::uint64_t q = std::uint64_t{0xCD9E8D57} * counter.c;
    counter = {
        static_cast<std::uint32_t>(q >> 32) ^ counter.b ^ key0, static_cast<std::uint32_t>(q),
        static_cast<std::uint32_t>(p >> 32) ^ counter.d ^ key1, static_cast<std::uint32_t>(p)};
    key0 += 0x9E3779B9;  // the golden ratio
    key1 += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

// In (0, 1): the upper 23 bits and a half.
constexpr float open_uniform(std::uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// log(u) for u of open_uniform, within 2 ulp: u = 2^e m with m in [sqrt(1/2), sqrt(2)), and
// log(m) = 2 atanh(s), s = (m - 1) / (m + 1), whose series ends where f32 does.
constexpr float log_uniform(float u) {
  float m = u;
  int e = 0;
  while (m < 0.70710678f) {  // 0.69 times on average; u is at least 2^-24
    m *= 2;
    --e;
  }
  const float f = m - 1;  // exact
  const float s = f / (m + 1);
  const float s2 = s * s;
  const float series =
      s2 * (0.66666667f + s2 * (0.4f + s2 * (0.28571429f + s2 * (0.22222222f + s2 * 0.18181818f))));
  // 2 s = f - s f, so that the leading term is exact where log(m) is small.
  const float tail = s * (series - f);
  return static_cast<float>(e) * 0.69314718f + (f + tail);
}

// cos(pi v) for v in [0, 2), within 2 ulp away from its zeros: v is folded, exactly, into a
// quarter around 0 or around 1/2, and the series of the cosine or the sine does the rest.
constexpr float cos_pi(float v) {
  const float w = v > 1 ? 2 - v : v;     // cos(pi v) is even round 1
  const float x = w > 0.5f ? 1 - w : w;  // and odd round 1/2
  const float sign = w > 0.5f ? -1 : 1;
  float value = 0;
  if (x < 0.25f) {
    const float y = 3.14159265f * x;
    const float y2 = y * y;
    value = 1 + y2 * (-0.5f + y2 * (4.16666667e-2f + y2 * (-1.38888889e-3f + y2 * 2.48015873e-5f)));
  } else {
    const float y = 3.14159265f * (0.5f - x);
    const float y2 = y * y;
    value = y + y * y2 *
                    (-1.66666667e-1f +
                     y2 * (8.33333333e-3f + y2 * (-1.98412698e-4f + y2 * 2.75573192e-6f)));
  }
  return sign * value;
}

// Of the normal distribution (Box & Muller 1958). Host and device may differ by a few roundings,
// where one of them fuses a product with a sum.
constexpr float normal(std::uint32_t radius, std::uint32_t angle) {
  return std::sqrt(-2 * log_uniform(open_uniform(radius))) * cos_pi(2 * open_uniform(angle));
}

}  // namespace mamba_rl
