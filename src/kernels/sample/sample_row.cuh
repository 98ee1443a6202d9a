// One row of logits, walked by a block, and the two searches that sampling needs. Masses (a
// candidate's count, or its probability in fixed point) are integers: their sums are exact, so no
// result depends on which thread adds first.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/gpu/ptx.cuh"

namespace mamba::cuda::sampling {

constexpr int block_threads = 1024;
constexpr int warps = block_threads / 32;

// Unsigned integers in the order of the floats, and back; -0 and 0 are one, NaN is minus infinity.
__device__ __forceinline__ std::uint32_t ordered(float value) {
  const std::uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(std::uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

// A row of logits as the repetition penalty leaves them.
struct Row {
  const float* logits;
  const std::int32_t* seen;  // nullptr without a penalty
  float penalty;
  int count;
  bool vectors;  // four at a time from every multiple of four

  __device__ __forceinline__ float adjust(float v, std::int32_t mark) const {
    if (mark != 0) v = v > 0 ? v / penalty : v * penalty;
    return isnan(v) ? -INFINITY : v;
  }
  __device__ __forceinline__ float at(int i) const {
    return adjust(logits[i], seen != nullptr ? seen[i] : 0);
  }
};

// f(id, logit) for the ids `first` to `last - 1` by `threads` threads of which this is `thread`.
// The logits of two rounds to come are on their way while one is worked on.
template <class F>
__device__ __forceinline__ void for_each(const Row& row, int first, int last, int thread,
                                         int threads, const F& f) {
  if (!row.vectors) {
    for (int i = first + thread; i < last; i += threads) f(i, row.at(i));
    return;
  }
  const int whole = first + (last - first) / 4 * 4;
  const auto load = [&](int i) {
    return i < whole ? *reinterpret_cast<const float4*>(row.logits + i) : float4{};
  };
  int i = first + 4 * thread;
  float4 next = load(i);
  float4 second = load(i + 4 * threads);
#pragma unroll 1
  for (; i < whole; i += 4 * threads) {
    const float4 v = next;
    next = second;
    second = load(i + 8 * threads);
    int4 marks = {};
    if (row.seen != nullptr) marks = *reinterpret_cast<const int4*>(row.seen + i);
    f(i, row.adjust(v.x, marks.x));
    f(i + 1, row.adjust(v.y, marks.y));
    f(i + 2, row.adjust(v.z, marks.z));
    f(i + 3, row.adjust(v.w, marks.w));
  }
  if (thread < last - whole) f(whole + thread, row.at(whole + thread));
}

// What a block shares. A digit of the search for a cut has 256 values; 16 copies of their sums keep
// lanes that add to the same value apart (logits are close together: most share one or two values
// of their upper 8 bits). A 64-bit sum is two 32-bit ones, because those are added in hardware.
struct Shared {
  static constexpr int digits = 256;
  static constexpr int copies = 16;
  std::uint32_t low[digits][copies];
  std::uint32_t high[digits][copies];
  std::uint64_t totals[digits];  // the largest digit first
  std::uint64_t sums[warps];
};

__device__ __forceinline__ std::uint64_t warp_sum(std::uint64_t value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(all_lanes, value, offset);
  }
  return value;
}
__device__ __forceinline__ std::uint64_t warp_max(std::uint64_t value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const std::uint64_t other = __shfl_xor_sync(all_lanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}
// The sum over the lanes up to this one.
__device__ __forceinline__ std::uint64_t warp_prefix(std::uint64_t value) {
  for (int offset = 1; offset < 32; offset *= 2) {
    const std::uint64_t below = __shfl_up_sync(all_lanes, value, offset);
    if (static_cast<int>(threadIdx.x % 32) >= offset) value += below;
  }
  return value;
}

// The row's largest logit and its lowest id, as ordered(logit) << 32 | ~id.
__device__ inline std::uint64_t find_largest(Shared& shared, const Row& row) {
  float best = -INFINITY;
  int id = 0;
  for_each(row, 0, row.count, static_cast<int>(threadIdx.x), block_threads, [&](int i, float v) {
    if (v > best) {  // a thread meets its ids in rising order
      best = v;
      id = i;
    }
  });
  std::uint64_t largest = std::uint64_t{ordered(best)} << 32 | ~static_cast<std::uint32_t>(id);
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) shared.sums[threadIdx.x / 32] = largest;
  __syncthreads();
  largest = warp_max(shared.sums[threadIdx.x % 32]);
  __syncthreads();
  return largest;
}

// Candidates in the order of falling logits, equals by rising id, up to and with this one.
struct Cut {
  std::uint32_t key = 0;  // ordered(logit)
  int id = 0x7fffffff;
  __device__ __forceinline__ bool keeps(std::uint32_t k, int i) const {
    return k > key || (k == key && i <= id);
  }
};

// shared.sums = the mass of each warp's part of the ids; the parts are `length` long.
template <class Mass>
__device__ __forceinline__ void sum_parts(Shared& shared, const Row& row, int first, int last,
                                          int length, const Mass& mass) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int begin = min(first + warp * length, last);
  std::uint64_t sum = 0;
  for_each(row, begin, min(begin + length, last), static_cast<int>(threadIdx.x) % 32, 32,
           [&](int i, float v) { sum += mass(i, v); });
  sum = warp_sum(sum);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.sums[warp] = sum;
  __syncthreads();
}

__device__ __forceinline__ int part_length(int count) {
  return (count + 4 * warps - 1) / (4 * warps) * 4;
}

template <class Mass>
__device__ std::uint64_t total(Shared& shared, const Row& row, const Mass& mass) {
  sum_parts(shared, row, 0, row.count, part_length(row.count), mass);
  return warp_sum(shared.sums[threadIdx.x % 32]);
}

// The first id up to which more than threshold(total) of the mass lies; the threshold is below the
// total. Each round keeps one warp's part of the ids, a thirty-second.
template <class Mass, class Threshold>
__device__ int find_id(Shared& shared, const Row& row, const Mass& mass,
                       const Threshold& threshold) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int first = 0;
  int last = row.count;
  std::uint64_t left = 0;  // of the threshold, from `first` on
  bool whole = true;
  do {
    const int length = part_length(last - first);
    sum_parts(shared, row, first, last, length, mass);
    const std::uint64_t part = shared.sums[lane];
    const std::uint64_t prefix = warp_prefix(part);
    if (whole) left = threshold(__shfl_sync(all_lanes, prefix, 31));
    whole = false;
    const int chosen = __ffs(static_cast<int>(__ballot_sync(all_lanes, prefix > left))) - 1;
    left -= __shfl_sync(all_lanes, prefix - part, chosen);
    first += chosen * length;
    last = min(first + length, last);
  } while (last - first > 32);
  const int id = first + lane;
  const std::uint64_t prefix = warp_prefix(id < last ? mass(id, row.at(id)) : 0);
  return first + __ffs(static_cast<int>(__ballot_sync(all_lanes, prefix > left))) - 1;
}

// Adds to one of the copies of a digit's sum.
__device__ __forceinline__ void add_to_digit(Shared& shared, std::uint32_t digit,
                                             std::uint64_t mass) {
  const std::uint32_t copy = threadIdx.x % Shared::copies;
  const auto low = static_cast<std::uint32_t>(mass);
  const std::uint32_t before = atomicAdd(&shared.low[digit][copy], low);
  const std::uint32_t carry = before + low < low ? 1 : 0;
  const std::uint32_t high = static_cast<std::uint32_t>(mass >> 32) + carry;
  if (high != 0) atomicAdd(&shared.high[digit][copy], high);
}

// shared.totals = the mass of each value of the 8 bits of the key from `shift` up, largest first,
// over the candidates in `cut` whose higher bits are `prefix`.
template <class Mass>
__device__ __forceinline__ void sum_digits(Shared& shared, const Row& row, const Mass& mass,
                                           const Cut& cut, std::uint32_t prefix, int shift) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < Shared::digits * Shared::copies; i += block_threads) {
    shared.low[0][i] = 0;
    shared.high[0][i] = 0;
  }
  __syncthreads();
  for_each(row, 0, row.count, thread, block_threads, [&](int i, float v) {
    const std::uint32_t key = ordered(v);
    if (std::uint64_t{key} >> (shift + 8) != prefix || !cut.keeps(key, i)) return;
    const std::uint64_t m = mass(i, v);
    if (m != 0) add_to_digit(shared, key >> shift & 255, m);
  });
  __syncthreads();
  if (thread < Shared::digits) {
    const int digit = Shared::digits - 1 - thread;
    std::uint64_t sum = 0;
#pragma unroll 2
    for (int k = 0; k < Shared::copies; ++k) {
      const int copy = (k + thread) % Shared::copies;  // another bank for each lane
      sum += shared.low[digit][copy] + (std::uint64_t{shared.high[digit][copy]} << 32);
    }
    shared.totals[thread] = sum;
  }
  __syncthreads();
}

// The fewest of the candidates in `cut`, in its order, whose mass reaches `target`, which is at
// least 1 and at most their whole mass. The key of the last one is found from its upper bits down.
template <class Mass>
__device__ Cut find_cut(Shared& shared, const Row& row, const Mass& mass, const Cut& cut,
                        std::uint64_t target) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int each = Shared::digits / 32;
  std::uint64_t above = 0;  // the mass beyond the present digit, always below the target
  std::uint64_t equals = 0;
  std::uint32_t key = 0;
#pragma unroll 1
  for (int shift = 24; shift >= 0; shift -= 8) {
    sum_digits(shared, row, mass, cut, key, shift);
    std::uint64_t part = 0;
#pragma unroll 2
    for (int k = 0; k < each; ++k) part += shared.totals[lane * each + k];
    const std::uint64_t prefix = above + warp_prefix(part);
    const int chosen = __ffs(static_cast<int>(__ballot_sync(all_lanes, prefix >= target))) - 1;
    above = __shfl_sync(all_lanes, prefix - part, chosen);
    int d = chosen * each;
    while (d < chosen * each + each - 1 && above + shared.totals[d] < target) {
      above += shared.totals[d++];
    }
    equals = shared.totals[d];
    key = key << 8 | static_cast<std::uint32_t>(Shared::digits - 1 - d);
  }
  const std::uint64_t one = mass(0, from_ordered(key));  // equal logits have equal masses
  const std::uint64_t needed = (target - above + one - 1) / one;
  if (needed * one == equals) return {key, key == cut.key ? cut.id : Cut().id};
  const auto is_equal = [&](int i, float v) {
    return std::uint64_t{ordered(v) == key && cut.keeps(key, i)};
  };
  return {key, find_id(shared, row, is_equal, [&](std::uint64_t) { return needed - 1; })};
}

}  // namespace mamba::cuda::sampling
