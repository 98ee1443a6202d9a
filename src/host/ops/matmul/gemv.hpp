// A few rows times a large matrix: as fast as the matrix can be read.
#pragma once

#include <cstdint>

#include "host/ops/matmul/factor.hpp"

namespace mamba::host {

struct Gemv {
  // More rows than this keep too many sums for the registers; sgemm is then the better way.
  static constexpr std::int64_t max_rows = 8;
  // Rows of x begin this many floats apart, or a multiple: at least a vector of any target.
  static constexpr std::int64_t alignment = 64;

  const Factor* weight = nullptr;  // [out, in], not transposed
  std::int64_t in = 0;
  const float* x = nullptr;  // [1, 2, 4 or 8 rows, x_pitch], zeros from `in` on
  std::int64_t x_pitch = 0;
  std::int64_t rows = 0;  // 1, 2, 4 or 8
  float* sums = nullptr;  // [rows, sums_pitch]
  std::int64_t sums_pitch = 0;
};

// sums[r, o] = sum over i of x[r, i] weight[o, i], for o from first to last. A sum is added up in
// the same order whatever the number of rows and the range.
void run(const Gemv& gemv, std::int64_t first, std::int64_t last);

}  // namespace mamba::host
