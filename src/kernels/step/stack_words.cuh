// What the blocks of a step of a stack (stack_step.cu) hand each other, and how they share the
// work.
#pragma once

#include <cstdint>

#include <mamba/tensor.hpp>

#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda::stack {

using T = bf16;

// 8 warps: 0.229 ms a token of 130m and 1.789 of 2.8b, 12: 0.217 and 1.725. 16 are left too few
// registers each.
constexpr int warps = 12, threads = warps * 32;
constexpr int piece = 32;            // inputs of a warp at a time
constexpr int span = warps * piece;  // of the block

// What passes between blocks: a value and the layer it is of, counted from 1.
using Word = std::uint64_t;
using WordPair = ulonglong2;

__device__ __forceinline__ void give(Word* to, std::uint32_t value, int round) {
  store_relaxed(to, Word{static_cast<std::uint32_t>(round)} << 32 | value);
}
__device__ __forceinline__ void look(const Word* from, WordPair& to) { to = load_relaxed(from); }
__device__ __forceinline__ std::uint32_t value_of(Word word) {
  return static_cast<std::uint32_t>(word);
}
__device__ __forceinline__ bool is_of(const WordPair& pair, int round) {
  return static_cast<int>(pair.x >> 32) == round && static_cast<int>(pair.y >> 32) == round;
}
__device__ __forceinline__ std::uint32_t pair_of(float low, float high) {
  const float both[2] = {low, high};
  return Packed<T, 2>::pack(both).words;
}

// Neighbouring rows of a matrix, or channels, of one block.
struct Share {
  int first, count;
  // The blocks' shares of `total`, a multiple of `together`, differ by `together` at most.
  __host__ __device__ static Share of(int total, int together, int block, int blocks) {
    const int units = total / together;
    const int first = static_cast<int>(std::int64_t{units} * block / blocks);
    const int end = static_cast<int>(std::int64_t{units} * (block + 1) / blocks);
    return {first * together, (end - first) * together};
  }
  static int most(int total, int together, int blocks) {
    return (total / together + blocks - 1) / blocks * together;
  }
};

// Inputs of the products lie warp by warp: a warp's pieces of a batch row are one run, in shared
// memory and among the words, so that a lane finds all of its own by constant steps.
struct Pieces {
  int most;  // of a warp
  __host__ __device__ explicit Pieces(int inputs) : most((inputs + span - 1) / span) {}
  // Where value k of batch row n of `rows` is.
  __device__ __forceinline__ int place(int k, int n, int rows) const {
    const auto at = static_cast<unsigned>(k);
    const auto warp = static_cast<int>(at / piece % warps), i = static_cast<int>(at / span);
    return ((warp * rows + n) * most + i) * piece + static_cast<int>(at % piece);
  }
  __host__ __device__ int values(int rows) const { return warps * rows * most * piece; }
};

// Of a stream: two sets of words, of which a launch uses one and wipes the other for the next.
struct HandOver {
  static constexpr int turn_words = 32;  // of 4 bytes, so that the turn is alone in its line
  std::uint32_t* turn;                   // which set is used next
  Word* sets[2];
  std::int64_t words;  // of a set, even

  explicit HandOver(const TensorView& memory)
      : turn(reinterpret_cast<std::uint32_t*>(memory.data<std::int32_t>())),
        words((memory.count() - turn_words) / 8 * 2) {
    sets[0] = reinterpret_cast<Word*>(turn + turn_words);
    sets[1] = sets[0] + words;
  }
};

}  // namespace mamba::cuda::stack
