// How the CUDA kernels are timed: each call on operands that are not in the cache, many calls in
// one graph, the median over replays.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include <mamba/graph.hpp>
#include <mamba/tensor.hpp>

#include "random_tensor.hpp"

namespace mamba {

inline const Device gpu = Device::cuda(0);
constexpr std::int64_t cache_bytes = std::int64_t{60} << 20;  // L2 of an H200

// Floors: see bench/README.md.
constexpr double special_functions_per_second = 4.17e12;
constexpr double bytes_per_second = 4.28e12;
constexpr double bf16_flop_per_second = 790e12;

inline Tensor random_tensor(const Shape& shape, DType dtype, float low, float high) {
  return bench::random_tensor(shape, dtype, low, high).to(gpu);
}

// [batch, time]: an episode ends every 1000 steps, in every row at another time.
inline Tensor episode_resets(std::int64_t batch, std::int64_t time) {
  std::vector<std::int32_t> flags;
  for (std::int64_t i = 0; i < batch * time; ++i) {
    flags.push_back((i % time + 37 * (i / time)) % 1000 == 0 ? 1 : 0);
  }
  return Tensor::from(flags, {batch, time}).to(gpu);
}

using Call = std::function<void(Stream&)>;

// Seconds per call: `calls` one after the other in a graph, replayed; the median replay.
inline double seconds_per_call(const std::vector<Call>& calls) {
  Stream stream(gpu);
  for (const Call& call : calls) call(stream);
  stream.synchronize();
  const auto nodes = std::max<std::size_t>(calls.size(), 16);
  const Graph graph = Graph::record(stream, [&](Stream& recorded) {
    for (std::size_t i = 0; i < nodes; ++i) calls[i % calls.size()](recorded);
  });
  std::vector<double> times;
  for (int replay = 0; replay < 12; ++replay) {
    stream.synchronize();
    const auto start = std::chrono::steady_clock::now();
    graph.replay();
    stream.synchronize();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    times.push_back(elapsed.count() / static_cast<double>(nodes));
  }
  std::sort(times.begin() + 2, times.end());  // the first two warm up
  return times[2 + (times.size() - 2) / 2];
}

// As many independent copies of a call's operands as overflow the cache, at least two.
inline std::size_t copies_of(std::int64_t bytes) {
  return static_cast<std::size_t>(
      std::clamp<std::int64_t>(2 * cache_bytes / std::max<std::int64_t>(bytes, 1) + 1, 2, 64));
}

inline void report(benchmark::State& bench, double seconds, double floor) {
  for (auto _ : bench) bench.SetIterationTime(seconds);
  bench.counters["us"] = seconds * 1e6;
  bench.counters["floor_us"] = floor * 1e6;
  bench.counters["of_floor"] = seconds / floor;
}

}  // namespace mamba
