// The channels of an item (sequence.hpp) between memory and vectors, for the two recurrences.
// Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_CHANNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_CHANNELS_INL_H_
#undef MAMBA_HOST_OPS_CHANNELS_INL_H_
#else
#define MAMBA_HOST_OPS_CHANNELS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "host/ops/storage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// Channels in a vector; no machine has more than block_channels.
inline std::int64_t vector_channels() { return static_cast<std::int64_t>(hn::Lanes(F32())); }

// The next vector of channels, of which `left` remain: lanes beyond them are zero and not touched
// in memory.
template <class T>
HWY_INLINE F32Vec load_channels(const T* from, std::int64_t left) {
  if (HWY_LIKELY(left >= vector_channels())) return load(from);
  return load_part(from, static_cast<std::size_t>(left));
}

template <class T>
HWY_INLINE void store_channels(F32Vec v, T* to, std::int64_t left) {
  if (HWY_LIKELY(left >= vector_channels())) return store(v, to);
  store_part(v, to, static_cast<std::size_t>(left));
}

// to[column][row] = from[row][column], pitches in elements.
template <class T>
void transpose_each(const T* from, std::int64_t from_pitch, T* to, std::int64_t to_pitch,
                    std::int64_t rows, std::int64_t columns) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
  }
}

template <class T>
void transpose(const T* from, std::int64_t from_pitch, T* to, std::int64_t to_pitch,
               std::int64_t rows, std::int64_t columns) {
  transpose_each(from, from_pitch, to, to_pitch, rows, columns);
}

#if HWY_TARGET != HWY_SCALAR
// Four by four in registers. Element by element, one step of 1536 channels and 16 states takes 35
// us instead of 21: A, the state before and the state after are all transposed.
inline void transpose(const float* from, std::int64_t from_pitch, float* to, std::int64_t to_pitch,
                      std::int64_t rows, std::int64_t columns) {
  const hn::FixedTag<float, 4> d;
  const std::int64_t whole_rows = rows / 4 * 4;
  const std::int64_t whole_columns = columns / 4 * 4;
  for (std::int64_t i = 0; i < whole_rows; i += 4) {
    for (std::int64_t j = 0; j < whole_columns; j += 4) {
      const float* source = from + i * from_pitch + j;
      float* target = to + j * to_pitch + i;
      const auto row0 = hn::LoadU(d, source);
      const auto row1 = hn::LoadU(d, source + from_pitch);
      const auto row2 = hn::LoadU(d, source + 2 * from_pitch);
      const auto row3 = hn::LoadU(d, source + 3 * from_pitch);
      const auto low01 = hn::InterleaveLower(d, row0, row1);
      const auto low23 = hn::InterleaveLower(d, row2, row3);
      const auto high01 = hn::InterleaveUpper(d, row0, row1);
      const auto high23 = hn::InterleaveUpper(d, row2, row3);
      hn::StoreU(hn::ConcatLowerLower(d, low23, low01), d, target);
      hn::StoreU(hn::ConcatUpperUpper(d, low23, low01), d, target + to_pitch);
      hn::StoreU(hn::ConcatLowerLower(d, high23, high01), d, target + 2 * to_pitch);
      hn::StoreU(hn::ConcatUpperUpper(d, high23, high01), d, target + 3 * to_pitch);
    }
  }
  transpose_each(from + whole_columns, from_pitch, to + whole_columns * to_pitch, to_pitch,
                 whole_rows, columns - whole_columns);
  transpose_each(from + whole_rows * from_pitch, from_pitch, to + whole_rows, to_pitch,
                 rows - whole_rows, columns);
}
#endif

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
