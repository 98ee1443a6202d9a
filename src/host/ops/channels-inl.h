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
void transpose(const T* from, std::int64_t from_pitch, T* to, std::int64_t to_pitch,
               std::int64_t rows, std::int64_t columns) {
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < columns; ++j) to[j * to_pitch + i] = from[i * from_pitch + j];
  }
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
