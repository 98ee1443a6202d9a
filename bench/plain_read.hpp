// The ceiling of everything that must read its weights once: a plain read of the same bytes.
#pragma once

#include <benchmark/benchmark.h>

#include <cstdint>
#include <thread>
#include <vector>

#include <mamba/tensor.hpp>

namespace mamba::bench {

// Adds up all 8-byte words of part `part` of every view: 32 sums, so that the additions never wait.
inline std::uint64_t read_part(const std::vector<ConstTensorView>& views, int part, int parts) {
  std::uint64_t sums[32] = {};
  for (const ConstTensorView& view : views) {
    const auto* words = static_cast<const std::uint64_t*>(view.data());
    const std::int64_t count = view.count() * size_of(view.dtype()) / 8 / 32;
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
      for (int k = 0; k < 32; ++k) sums[k] += words[32 * i + k];
    }
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t one : sums) sum += one;
  return sum;
}

inline void plain_read(const std::vector<ConstTensorView>& views, int threads) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    others.emplace_back(
        [&views, i, threads] { benchmark::DoNotOptimize(read_part(views, i, threads)); });
  }
  benchmark::DoNotOptimize(read_part(views, 0, threads));
  for (std::thread& other : others) other.join();
}

}  // namespace mamba::bench
