// What the walks of a GRU along time and against it share: a block has a row of the batch, its
// weights in registers.
//
// A step is a chain of latencies: the state into shared memory, a barrier, the state out of it,
// products, sums over lanes, gates. So a block has the fewest threads that keep an SM's FMA units
// busy, a warp for each of its four schedulers at 64 units; what a step needs of global
// memory is copied into shared memory some steps ahead; and what a step leaves is written while
// the next one waits. One barrier a step: what it hands over alternates between two places.
#pragma once

#include <mamba/check.hpp>

#include "rl/gru/block_math.cuh"

namespace mamba_rl::cuda {

// How 2 hidden threads share out products of `hidden` units with a vector in shared memory. Each
// has one of `parts` parts of it (every parts-th group of four), for `units` units; a unit's sum
// meets in two threads, which own it. With more parts the vector is read by fewer threads, for one
// more exchange between lanes. The parts are the upper bits of the lane: neighbours read the same.
template <int hidden, int parts>
class UnitShare {
 public:
  static constexpr int threads = 2 * hidden;
  static constexpr int units = parts / 2;
  static constexpr int vectors = hidden / (4 * parts);  // groups of four of a part
  static_assert(vectors * 4 * parts == hidden, "every number has a thread");

  __device__ UnitShare()
      : part_(static_cast<int>(threadIdx.x) % warp / columns),
        first_unit_(static_cast<int>(threadIdx.x) / warp * (warp / 2) +
                    static_cast<int>(threadIdx.x) % columns) {}

  // The first one of a unit's two owners, which does what only one of them has to.
  __device__ bool first() const { return part_ % 2 == 0; }
  // The one that this thread owns, and those whose sums it gives away.
  __device__ int unit(int k = 0) const { return first_unit_ + (k ^ part_ / 2) * columns; }
  // Where the v-th group of four of this thread's part begins.
  __device__ int input(int v) const { return v * input_pitch + 4 * part_; }
  static constexpr int input_pitch = 4 * parts;

  // The whole sum of the own unit: sums[k] is this part's of unit(k).
  __device__ __forceinline__ float gather(float (&sums)[units]) const {
#pragma unroll
    for (int half = units / 2; half >= 1; half /= 2) {
#pragma unroll
      for (int k = 0; k < half; ++k) {
        sums[k] += __shfl_xor_sync(all_lanes, sums[k + half], 2 * half * columns);
      }
    }
    return sums[0] + __shfl_xor_sync(all_lanes, sums[0], columns);
  }

 private:
  static constexpr int columns = warp / parts;  // lanes of a part
  int part_, first_unit_;
};

// `bytes` (4 or 16) from global to shared memory if `there`: a predicate, so that a step has no
// branch and its instructions can be ordered as one.
template <int bytes>
__device__ __forceinline__ void copy_if(bool there, void* to, const void* from) {
  const auto shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (bytes == 16) {  // .cg: not by way of L1
    asm volatile(
        "{ .reg .pred there; setp.ne.s32 there, %0, 0;\n"
        "@there cp.async.cg.shared.global [%1], [%2], 16; }" ::"r"(static_cast<int>(there)),
        "r"(shared), "l"(from)
        : "memory");
  } else {
    asm volatile(
        "{ .reg .pred there; setp.ne.s32 there, %0, 0;\n"
        "@there cp.async.ca.shared.global [%1], [%2], 4; }" ::"r"(static_cast<int>(there)),
        "r"(shared), "l"(from)
        : "memory");
  }
}

// Steps of `size` floats each, copied into shared memory `depth` steps before they are used, half
// of which is longer than global memory takes. Every thread makes this object and brings 16 bytes
// of every step, or its reset, or nothing. Pointers move from step to step: an address made anew
// from a shared array begins with a special register, for which a step would wait.
template <int size>
class StepQueue {
 public:
  static constexpr int vectors = size / 4;
  static constexpr int depth = 16;
  struct alignas(16) Step {
    Floats<4> values[vectors];
    std::int32_t reset;  // at the place of a further 16 bytes
  };

  // `values` (of threads before the one of index `vectors`) and `reset` (of that one, optional) are
  // the first step's; `pitch` leads to the next. After it a barrier, before the first is read.
  __device__ StepQueue(Step (&steps)[depth], const float* values, const std::int32_t* reset,
                       std::int64_t pitch, int time)
      : now_(steps),
        next_(steps + 1),
        brings_values_(static_cast<int>(threadIdx.x) < vectors),
        from_(brings_values_ ? static_cast<const void*>(values) : reset),
        pitch_(pitch * 4),
        left_(static_cast<int>(threadIdx.x) > vectors || from_ == nullptr ? 0 : time) {
    if (static_cast<int>(threadIdx.x) == vectors && reset == nullptr) {
      for (Step& step : steps) step.reset = 0;
    }
#pragma unroll 1
    for (Step& step : steps) bring(step);
  }

  // In the beginning the current step is the first. It and the next are there, as are all steps for
  // which every thread has waited before a barrier: half of `depth`.
  __device__ const Step& current() const { return *now_; }
  __device__ const Step& next() const { return *next_; }
  // Once after every barrier: nobody reads the current step any more, so that its place is free for
  // another, and the next becomes the current one.
  __device__ __forceinline__ void advance() {
    bring(*now_);
    now_ = next_++;
    if (++taken_ == depth) {
      next_ -= depth;
      taken_ = 0;
    }
  }

 private:
  __device__ __forceinline__ void bring(Step& to) {
    Floats<4>* const place = to.values + threadIdx.x;
    copy_if<16>(brings_values_ && left_ > 0, place, from_);
    copy_if<4>(!brings_values_ && left_ > 0, place, from_);
    from_ = static_cast<const char*>(from_) + pitch_;
    --left_;
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group %0;" ::"n"(depth / 2) : "memory");
  }

  Step *now_, *next_;
  int taken_ = 1;  // how often next_ has moved since the first place
  bool brings_values_;
  const void* from_;
  std::int64_t pitch_;
  int left_;
};

// [2][hidden] in shared memory: each step writes into the other half than the one before, so that
// one barrier is enough.
template <int hidden, class Share>
class Exchange {
 public:
  __device__ Exchange(Floats<4> (&places)[2][hidden / 4], const Share& share)
      : own_(&places[0][0].at[0] + share.unit()), part_(&places[0][share.input(0) / 4]) {}

  // Both owners of a unit put the same.
  __device__ __forceinline__ void put(float value) {
    *own_ = value;
    own_ += 4 * other_;
  }
  // After a barrier: this thread's part of everyone's.
  __device__ __forceinline__ void get(Floats<4> (&values)[Share::vectors]) {
#pragma unroll
    for (int v = 0; v < Share::vectors; ++v) {
      values[v] = part_[(Share::input_pitch / 4) * v];
    }
    part_ += other_;
    other_ = -other_;
  }

 private:
  float* own_;
  const Floats<4>* part_;
  int other_ = hidden / 4;
};

// Whether steps can be read 16 bytes at a time.
template <class T>
bool by_vectors(const Rows<T>& rows) {
  return reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.row % 4 == 0 &&
         rows.step % 4 == 0;
}

// f(the size as a constant) if there is a kernel for it, else f(0).
template <class F>
void for_hidden(std::int64_t hidden, bool vectors, const F& f) {
  if (vectors && hidden == 64) return f(std::integral_constant<int, 64>());
  if (vectors && hidden == 32) return f(std::integral_constant<int, 32>());
  if (vectors && hidden == 16) return f(std::integral_constant<int, 16>());
  f(std::integral_constant<int, 0>());
}

// Of the kernels for any size, whose units have `floats` numbers each in shared memory.
constexpr int any_threads = 256;
inline std::size_t any_shared(const char* where, std::int64_t hidden, std::int64_t floats) {
  constexpr std::int64_t most = 48 * 1024;  // what a block has without asking for more
  mamba::check::range(where, "hidden on CUDA", hidden, 1, most / 4 / floats);
  return static_cast<std::size_t>(4 * floats * hidden);
}

}  // namespace mamba_rl::cuda
