#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/matmul/gemm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include <algorithm>
#include <cstring>
#include <string>

#include <mamba/device.hpp>

#include "host/ops/matmul/factor-inl.h"
#include "host/ops/matmul/gemm.hpp"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What the kernels multiply are words of 32 bits: one f32, or two neighbours in k of bf16.
//
// The tile of sums that one thread keeps in registers: `tile_rows` times two vectors.
constexpr int tile_rows = HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64 ? 12 : 6;
constexpr int low_rows = 4;  // of a lower tile for what is left
constexpr int tile_vectors = 2;
static_assert(Gemm::copied_rows % tile_rows == 0 && Gemm::copied_rows % low_rows == 0);

template <class Row>
HWY_INLINE void copy_run(const Row& row, std::int64_t element, float* to, std::int64_t count) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32()));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) store(row.lanes(element + i), to + i);
  if (i == count) return;
  const auto left = static_cast<std::size_t>(count - i);
  store_part(row.part(element + i, left), to + i, left);
}

// Runs of `count` elements of some lines (rows of the operand), from `element` on, as words:
// to[line * pitch + word].
void copy_lines(const Factor& factor, bool pairs, std::int64_t first, std::int64_t lines,
                std::int64_t element, std::int64_t count, float* to, std::int64_t pitch) {
  if (pairs) {
    for (std::int64_t line = 0; line < lines; ++line) {
      float* words = to + line * pitch;
      if (count % 2 != 0) words[count / 2] = 0;
      std::memcpy(static_cast<void*>(words), StoredRow<bf16>(factor, first + line).from + element,
                  static_cast<std::size_t>(count) * sizeof(bf16));
    }
    return;
  }
  visit_rows(factor, [&](auto type) {
    using Row = typename decltype(type)::type;
    for (std::int64_t line = 0; line < lines; ++line) {
      copy_run(Row(factor, first + line), element, to + line * pitch, count);
    }
  });
}

// Rows of words to columns, four rows or the `pitch` that there are: to[k * pitch + r] =
// from[r * from_pitch + k].
HWY_INLINE void turn_rows(const float* from, std::int64_t from_pitch, std::int64_t words, float* to,
                          std::int64_t pitch) {
  std::int64_t k = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<std::uint32_t, 4> d;
  const hn::RepartitionToWide<decltype(d)> d64;
  const auto row = [&](std::int64_t r, std::int64_t at) HWY_ATTR {
    return hn::BitCast(d, hn::LoadU(hn::FixedTag<float, 4>(), from + r * from_pitch + at));
  };
  for (; k + 4 <= words; k += 4) {
    const auto a = row(0, k), b = row(1, k), c = row(2, k), e = row(3, k);
    const auto ab = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
    const auto ce = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
    const auto ab_upper = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
    const auto ce_upper = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
    const auto put = [&](std::int64_t i, auto v) HWY_ATTR {
      const hn::FixedTag<float, 4> df;
      hn::StoreU(hn::BitCast(df, v), df, to + (k + i) * pitch);
    };
    put(0, hn::InterleaveLower(d64, ab, ce));
    put(1, hn::InterleaveUpper(d64, ab, ce));
    put(2, hn::InterleaveLower(d64, ab_upper, ce_upper));
    put(3, hn::InterleaveUpper(d64, ab_upper, ce_upper));
  }
#endif
  for (; k < words; ++k) {
    for (std::int64_t r = 0; r < std::min<std::int64_t>(pitch, 4); ++r) {
      std::memcpy(to + k * pitch + r, from + r * from_pitch + k, sizeof(float));
    }
  }
}

// One panel: `columns` of the `width` lanes, for `depth` elements: to[word of k, width].
void pack_panel(const Factor& lanes, bool pairs, std::int64_t j, std::int64_t columns,
                std::int64_t k, std::int64_t depth, std::int64_t width, float* to) {
  if (lanes.transposed) {
    copy_lines(lanes, false, k, depth, j, columns, to, width);
    for (std::int64_t i = 0; i < depth && columns < width; ++i) {
      std::fill(to + i * width + columns, to + (i + 1) * width, 0.0f);
    }
    return;
  }
  const std::int64_t words = pairs ? (depth + 1) / 2 : depth;
  HWY_ALIGN float rows[4 * Gemm::copy_pitch];
  for (std::int64_t c = 0; c < width; c += 4) {
    const std::int64_t there = std::clamp<std::int64_t>(columns - c, 0, 4);
    if (there == 4 && lanes.dtype == DType::f32 && lanes.rows.evenly_pitched()) {  // as they lie
      const float* from = StoredRow<float>(lanes, j + c).from + k;
      turn_rows(from, lanes.rows.time_pitch, words, to + c, width);
      continue;
    }
    copy_lines(lanes, pairs, j + c, there, k, depth, rows, Gemm::copy_pitch);
    for (std::int64_t r = there; r < 4; ++r) {
      std::fill_n(rows + r * Gemm::copy_pitch, words, 0.0f);
    }
    turn_rows(rows, Gemm::copy_pitch, words, to + c, width);
  }
}

void pack_piece(const Gemm& gemm, const GemmPiece& piece) {
  const auto vector = static_cast<std::int64_t>(hn::Lanes(F32()));
  const bool pairs = gemm.words == Words::bf16_pairs;
  float* packed = gemm.packed;
  for (std::int64_t k = 0; k < piece.depth; k += Gemm::depth) {
    const std::int64_t depth = std::min(Gemm::depth, piece.depth - k);
    const std::int64_t words = pairs ? (depth + 1) / 2 : depth;
    for (std::int64_t j = 0; j < piece.columns; j += tile_vectors * vector) {
      const std::int64_t columns = piece.columns - j;
      const std::int64_t width = columns > vector ? tile_vectors * vector : vector;
      pack_panel(*gemm.lanes, pairs, piece.first_column + j, std::min(columns, width),
                 piece.first_k + k, depth, width, packed);
      packed += words * width;
    }
  }
}

// Where row i of a tile and word k of it stand in the copy of `broadcast`.
template <bool transposed>
struct Copied {
  static constexpr std::int64_t row = transposed ? 1 : Gemm::copy_pitch;
  static constexpr std::int64_t word = transposed ? Gemm::copied_rows : 1;
};

constexpr std::int64_t line_bytes = 64;

// A cache line for each word of a tile, of what is read next from memory: it comes to the second
// cache while this tile is multiplied.
struct Line {
  const char* at;
  std::int64_t step;  // bytes to the next one, or 0
  HWY_INLINE void fetch() {
    __builtin_prefetch(at, 0, 2);
    at += step;
  }
};

// tile[row, vector] = sum over the words of copy(row, word) panel(word, vector)
template <int rows, int vectors, class At>
HWY_NOINLINE void sum_tile(std::int64_t words, const float* HWY_RESTRICT copy,
                           const float* HWY_RESTRICT panel, float* HWY_RESTRICT tile, Line next) {
  const F32 d;
  const std::size_t lanes = hn::Lanes(d);
  F32Vec sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (std::int64_t k = 0; k < words; ++k) {
    next.fetch();
    F32Vec b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) b[v] = load(panel + static_cast<std::size_t>(v) * lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const F32Vec a = hn::Set(d, copy[r * At::row]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = hn::MulAdd(a, b[v], sum[r][v]);
    }
    copy += At::word;
    panel += static_cast<std::size_t>(vectors) * lanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      store(sum[r][v], tile + static_cast<std::size_t>(r * vectors + v) * lanes);
    }
  }
}

#if HWY_TARGET == HWY_AVX3
// The same where a word is a pair of bf16. Each product and sum is rounded to f32; numbers below
// the least normal one count as zero.
template <int rows, int vectors>
__attribute__((target(HWY_TARGET_STR ",avx512bf16"), noinline)) void sum_pairs(
    std::int64_t words, const float* HWY_RESTRICT copy, const float* HWY_RESTRICT panel,
    float* HWY_RESTRICT tile, Line next) {
  __m512 sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < words; ++k) {
    next.fetch();
    __m512bh b[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) b[v] = (__m512bh)_mm512_loadu_ps(panel + v * 16);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const __m512bh a = (__m512bh)_mm512_set1_ps(copy[r * Copied<false>::row]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, b[v]);
    }
    ++copy;
    panel += vectors * 16;
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_storeu_ps(tile + (r * vectors + v) * 16, sum[r][v]);
  }
}
#endif

bool has_pairs() {
#if HWY_TARGET == HWY_AVX3
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

// Intel's cores take as long for a pair of bf16 as for four f32: on an Emerald Rapids 89 GFLOP/s
// against 178 of f32 from the first cache.
bool has_fast_pairs() {
#if HWY_TARGET == HWY_AVX3
  return has_pairs() && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

template <int rows, int vectors>
void run_tile(bool pairs, bool transposed, std::int64_t words, const float* copy,
              const float* panel, float* tile, Line next) {
#if HWY_TARGET == HWY_AVX3
  if (pairs) return sum_pairs<rows, vectors>(words, copy, panel, tile, next);
#else
  (void)pairs;
#endif
  if (transposed) return sum_tile<rows, vectors, Copied<true>>(words, copy, panel, tile, next);
  sum_tile<rows, vectors, Copied<false>>(words, copy, panel, tile, next);
}

// sums[rows, columns] = tile, or += it.
void put_tile(const float* tile, std::int64_t width, std::int64_t rows, std::int64_t columns,
              float* sums, std::int64_t pitch, bool add) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(F32()));
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* from = tile + r * width;
    float* to = sums + r * pitch;
    std::int64_t j = 0;
    for (; j + lanes <= columns; j += lanes) {
      store(add ? hn::Add(load(to + j), load(from + j)) : load(from + j), to + j);
    }
    for (; j < columns; ++j) to[j] = add ? to[j] + from[j] : from[j];
  }
}

// The sums that a tile will be put to, or added to, come to the first cache while it is multiplied.
HWY_INLINE void fetch_sums(const float* sums, std::int64_t pitch, std::int64_t rows,
                           std::int64_t columns) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < columns; c += line_bytes / 4) {
      __builtin_prefetch(sums + r * pitch + c, 1, 3);
    }
  }
}

// Rows i .. i + rows of `broadcast` and elements k .. k + depth, where Copied says.
void copy_rows(const Gemm& gemm, bool pairs, std::int64_t i, std::int64_t rows, std::int64_t k,
               std::int64_t depth) {
  if (gemm.broadcast->transposed) {
    copy_lines(*gemm.broadcast, false, k, depth, i, rows, gemm.copy, Copied<true>::word);
  } else {
    copy_lines(*gemm.broadcast, pairs, i, rows, k, depth, gemm.copy, Copied<false>::row);
  }
}

void multiply_piece(const Gemm& gemm, const GemmPiece& piece) {
  const auto vector = static_cast<std::int64_t>(hn::Lanes(F32()));
  const bool pairs = gemm.words == Words::bf16_pairs;
  const bool transposed = gemm.broadcast->transposed;
  const std::int64_t row = transposed ? Copied<true>::row : Copied<false>::row;
  const char* next = piece.next;
  HWY_ALIGN float tile[tile_rows * tile_vectors * max_lanes];
  for (std::int64_t i = 0; i < piece.rows; i += Gemm::copied_rows) {
    const std::int64_t copied = std::min(Gemm::copied_rows, piece.rows - i);
    const float* panel = gemm.packed;
    for (std::int64_t k = 0; k < piece.depth; k += Gemm::depth) {
      const std::int64_t depth = std::min(Gemm::depth, piece.depth - k);
      const std::int64_t words = pairs ? (depth + 1) / 2 : depth;
      copy_rows(gemm, pairs, piece.first_row + i, copied, piece.first_k + k, depth);
      for (std::int64_t j = 0; j < piece.columns; j += tile_vectors * vector) {
        const std::int64_t columns = piece.columns - j;
        const bool wide = columns > vector;
        const std::int64_t width = wide ? tile_vectors * vector : vector;
        for (std::int64_t r = 0; r < copied;) {
          const std::int64_t rows = copied - r;
          const bool low = rows <= 2 * low_rows && rows < tile_rows;
          const auto run =
              low ? (wide ? run_tile<low_rows, tile_vectors> : run_tile<low_rows, 1>)
                  : (wide ? run_tile<tile_rows, tile_vectors> : run_tile<tile_rows, 1>);
          const float* copy = gemm.copy + r * row;
          const std::int64_t height = std::min<std::int64_t>(low ? low_rows : tile_rows, rows);
          float* sums = piece.sums + (i + r) * piece.sums_pitch + j;
          fetch_sums(sums, piece.sums_pitch, height, std::min(width, columns));
          const bool fetches = next < piece.next_end;
          run(pairs, transposed, words, copy, panel, tile,
              fetches ? Line{next, line_bytes} : Line{reinterpret_cast<const char*>(copy), 0});
          if (fetches) next += line_bytes * words;
          put_tile(tile, width, height, std::min(width, columns), sums, piece.sums_pitch,
                   piece.add || k > 0);
          r += height;
        }
        panel += words * width;
      }
    }
  }
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(has_pairs);
HWY_EXPORT(has_fast_pairs);
HWY_EXPORT(target_name);
HWY_EXPORT(pack_piece);
HWY_EXPORT(multiply_piece);

bool can_multiply(const Factor& broadcast, const Factor& lanes, Words words) {
  if (words == Words::f32) return true;
  return broadcast.dtype == DType::bf16 && lanes.dtype == DType::bf16 && !broadcast.transposed &&
         !lanes.transposed && HWY_DYNAMIC_DISPATCH(has_pairs)();
}

Words words_of(const Factor& broadcast, const Factor& lanes) {
  const bool pairs = can_multiply(broadcast, lanes, Words::bf16_pairs);
  return pairs && HWY_DYNAMIC_DISPATCH(has_fast_pairs)() ? Words::bf16_pairs : Words::f32;
}

void pack(const Gemm& gemm, const GemmPiece& piece) {
  HWY_DYNAMIC_DISPATCH(pack_piece)(gemm, piece);
}

void multiply(const Gemm& gemm, const GemmPiece& piece) {
  HWY_DYNAMIC_DISPATCH(multiply_piece)(gemm, piece);
}

}  // namespace mamba::host

namespace mamba {

std::string cpu_kernels() {
  using namespace host;
  return std::string(HWY_DYNAMIC_DISPATCH(target_name)()) +
         (HWY_DYNAMIC_DISPATCH(has_fast_pairs)() ? ", bf16 in pairs" : ", bf16 as f32");
}

}  // namespace mamba
#endif  // HWY_ONCE
