// Products of the small matrices that an Ssd's chunk consists of, compiled once for every Highway
// target. They lie in the cache, so nothing is packed as matmul/gemm.hpp does it, and where time
// meets time half of the product is left out: also because a zero there would not keep a NaN of a
// later step from an earlier one.
#if defined(MAMBA_HOST_OPS_SSD_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SSD_PRODUCT_INL_H_
#undef MAMBA_HOST_OPS_SSD_PRODUCT_INL_H_
#else
#define MAMBA_HOST_OPS_SSD_PRODUCT_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "host/ops/channels-inl.h"
#include "host/ops/scan/ssd_items.hpp"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// sums[i, j] = sum over k of a(i, k) b[k, j], the sum in order of k, whatever the sizes. Columns
// are computed in whole vectors.
struct Product {
  const float* a = nullptr;
  const float* b = nullptr;
  std::int64_t b_pitch = 0;
  float* sums = nullptr;
  std::int64_t pitch = 0;
  std::int64_t rows = 0, columns = 0, depth = 0;
  std::int64_t a_pitch = 0;  // where a is transposed
  bool lower = false;        // only columns j <= i are wanted
  bool add = false;          // to `scale` times what is there
  float scale = 1;
};

// How a(i, k) is stored.
template <std::int64_t pitch>
struct ByRow {  // a[i * pitch + k]
  static HWY_INLINE const float* at(const Product& p, std::int64_t i, std::int64_t k) {
    return p.a + i * pitch + k;
  }
  static constexpr std::int64_t row = pitch;
  static HWY_INLINE std::int64_t step(const Product&) { return 1; }
};
struct ByColumn {  // a[k * a_pitch + i]
  static HWY_INLINE const float* at(const Product& p, std::int64_t i, std::int64_t k) {
    return p.a + k * p.a_pitch + i;
  }
  static constexpr std::int64_t row = 1;
  static HWY_INLINE std::int64_t step(const Product& p) { return p.a_pitch; }
};

// Which k meet row i: all, those up to i, or those from i on; of the last two the depth is the
// number of rows.
enum class Over { all, up_to_row, from_row };

// On x86 twelve rows, for whose sums AVX-512 has the registers, take as long as six: 512 steps of
// 24 heads 5.1 to 5.4 ms with either, and their gradient 14 to 15.
constexpr int product_rows = HWY_ARCH_ARM_A64 ? 12 : 6;
constexpr int product_low_rows = 4;
constexpr int product_vectors = 2;

// Rows i .. i + rows and vectors of columns from j on.
template <class A, Over over, int rows, int vectors>
HWY_NOINLINE void product_tile(const Product& p, std::int64_t i, std::int64_t j) {
  const F32 d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  F32Vec sum[rows][vectors];
  float* to = p.sums + i * p.pitch + j;
  if (p.add) {
    const F32Vec scale = hn::Set(d, p.scale);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        sum[r][v] = hn::Mul(scale, load(to + r * p.pitch + v * lanes));
      }
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
    }
  }
  std::int64_t k = over == Over::from_row ? i : 0;
  const float* a = A::at(p, i, k);
  const float* b = p.b + k * p.b_pitch + j;
  const auto whole = [&](std::int64_t end) HWY_ATTR {
    for (; k < end; ++k) {
      F32Vec column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const F32Vec value = hn::Set(d, a[r * A::row]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] = hn::MulAdd(value, column[v], sum[r][v]);
      }
      a += A::step(p);
      b += p.b_pitch;
    }
  };
  // The rows' own steps: k = i + c meets rows r >= c, or r <= c.
  const auto corner = [&]() HWY_ATTR {
#pragma GCC unroll 16
    for (int c = 0; c < rows; ++c) {
      F32Vec column[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) column[v] = load(b + v * lanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        if (over == Over::up_to_row ? r < c : r > c) continue;
        const F32Vec value = hn::Set(d, a[r * A::row]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) sum[r][v] = hn::MulAdd(value, column[v], sum[r][v]);
      }
      a += A::step(p);
      b += p.b_pitch;
    }
    k += rows;
  };
  if constexpr (over == Over::all) {
    whole(p.depth);
  } else if constexpr (over == Over::up_to_row) {
    whole(i);
    corner();
  } else {
    corner();
    whole(p.depth);
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) store(sum[r][v], to + r * p.pitch + v * lanes);
  }
}

template <class A, Over over, int rows>
void product_rows_from(const Product& p, std::int64_t i) {
  const std::int64_t lanes = vector_channels();
  const std::int64_t columns = p.lower ? std::min(p.columns, i + rows) : p.columns;
  std::int64_t j = 0;
  for (; j + lanes < columns; j += product_vectors * lanes) {
    product_tile<A, over, rows, product_vectors>(p, i, j);
  }
  if (j < columns) product_tile<A, over, rows, 1>(p, i, j);
}

template <class A, Over over = Over::all>
void multiply(const Product& p) {
  std::int64_t i = 0;
  for (; i + product_rows <= p.rows; i += product_rows) {
    product_rows_from<A, over, product_rows>(p, i);
  }
  for (; i + product_low_rows <= p.rows; i += product_low_rows) {
    product_rows_from<A, over, product_low_rows>(p, i);
  }
  for (; i < p.rows; ++i) product_rows_from<A, over, 1>(p, i);
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
