// A product of matrices of any size, in blocks that stay in the caches. Our own and not a
// library's, because of what a library would take from the promises. As tried: oneDNN 2.6.3
// allocates 4 to 6 times in every call, takes other kernels for one thread than for two, and comes
// as a shared library alone; BLIS 0.9 chooses by the processor's family and takes its AVX2 kernels
// on a younger one with AVX-512.
//
// The factors meet in tiles. An element of `broadcast` meets a vector of `lanes`:
//   sums[i, j] = sum over k of broadcast(i, k) lanes(j, k)
// A sum is added up in order of k, in f32, in pieces of Gemm::depth that are then added: always the
// same whatever the sizes, the cut over threads and the factor that is broadcast.
#pragma once

#include <cstdint>

#include "host/ops/matmul/factor.hpp"

namespace mamba::host {

// How two factors are multiplied. Pairs of bf16 round each product and sum to f32 as f32 does, and
// count numbers below the least normal f32 as zero.
enum class Words { f32, bf16_pairs };
// The factors allow it and the processor has it.
bool can_multiply(const Factor& broadcast, const Factor& lanes, Words words);
// The faster way.
Words words_of(const Factor& broadcast, const Factor& lanes);

struct Gemm {
  // Elements of k that a block has: a tile's part of both factors fits the first cache.
  static constexpr std::int64_t depth = 256;
  // Rows of `broadcast` that are copied at a time, and floats from one copied row to the next: an
  // odd number of cache lines, so that rows do not compete for the same ones.
  static constexpr std::int64_t copied_rows = 96;
  static constexpr std::int64_t copy_pitch = depth + 16;
  static constexpr std::int64_t copy_size = copied_rows * copy_pitch;
  // Columns of sums that `packed` has room for are a multiple of this: two vectors of any target.
  static constexpr std::int64_t alignment = 32;
  static std::int64_t padded(std::int64_t columns) {
    return (columns + alignment - 1) / alignment * alignment;
  }

  const Factor* broadcast = nullptr;
  const Factor* lanes = nullptr;
  Words words = Words::f32;
  float* packed = nullptr;  // padded(columns) * depth of a call
  float* copy = nullptr;    // copy_size
};

// A piece of a product: sums [rows, columns] over `depth` elements of k.
struct GemmPiece {
  std::int64_t first_row = 0, rows = 0;        // of `broadcast`
  std::int64_t first_column = 0, columns = 0;  // of `lanes`
  std::int64_t first_k = 0, depth = 0;
  float* sums = nullptr;
  std::int64_t sums_pitch = 0;
  bool add = false;  // to what is there
  // What is read next from memory, if anything: it is fetched meanwhile.
  const char* next = nullptr;
  const char* next_end = nullptr;
};

// Brings the piece's columns of `lanes` into gemm.packed, in the order in which multiply() reads
// it.
void pack(const Gemm& gemm, const GemmPiece& piece);
// sums[i, j] = sum over k of broadcast(i, k) packed(j, k), or what is there plus that.
void multiply(const Gemm& gemm, const GemmPiece& piece);

}  // namespace mamba::host
