// What the two recurrences (causal_conv.cpp, selective_scan.cpp) share: how [batch, time, channels]
// is cut into items and the items over threads, which state rows a batch row stands for, and where
// sequences begin. No item reads what another writes, and none depends on how many there are: that
// is why neither the number of threads nor the company in the batch can change a bit.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <mamba/ops.hpp>

namespace mamba::host {

// Channels of one item. Two AVX-512 vectors: whole cache lines also in 16-bit storage, and what a
// tile needs stays in the first-level cache.
constexpr std::int64_t block_channels = 64;
// Steps whose intermediate results an item holds at a time.
constexpr std::int64_t tile_steps = 16;

// Items are ordered by block, then by batch row, so that what depends on the channels alone (the
// transposed weights) is made once for a run of items.
struct Items {
  std::int64_t batch;
  std::int64_t channels;

  std::int64_t count() const { return batch * ((channels + block_channels - 1) / block_channels); }
  std::int64_t row(std::int64_t item) const { return item % batch; }
  std::int64_t block(std::int64_t item) const { return item / batch; }
  std::int64_t first_channel(std::int64_t block) const { return block * block_channels; }
  std::int64_t channels_of(std::int64_t block) const {
    return std::min(block_channels, channels - first_channel(block));
  }
};

// As many threads as have `smallest` units of work each. Waking a thread costs several
// microseconds, so a single step of a small layer stays on the caller's.
inline int useful_threads(const Stream& stream, const Items& items, std::int64_t work,
                          std::int64_t smallest) {
  const std::int64_t most = std::min<std::int64_t>(stream.threads(), items.count());
  return static_cast<int>(
      std::clamp<std::int64_t>(work / smallest, 1, std::max<std::int64_t>(1, most)));
}

// f(first item, one past the last, the thread's slice of `memory`) on each thread.
template <class F>
void each_thread(int threads, std::int64_t items, const TensorView& memory, const F& f) {
  float* base = memory.data<float>();
  const std::int64_t slice = memory.row_pitch();
  if (threads == 1) return f(std::int64_t{0}, items, base);
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t i = omp_get_thread_num();
    const std::int64_t n = omp_get_num_threads();
    f(items * i / n, items * (i + 1) / n, base + i * slice);
  }
}

// One operand's channels of an item, over time.
template <class T>
struct Track {
  T* first = nullptr;  // absent: nullptr
  std::int64_t pitch = 0;

  explicit operator bool() const { return first != nullptr; }
  T* at(std::int64_t t) const { return first + t * pitch; }
  // Rows of a wide tensor lie in different pages, where the hardware does not prefetch.
  void prefetch(std::int64_t t) const {
    constexpr std::int64_t line = 64 / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < block_channels; i += line) {
      __builtin_prefetch(at(t) + i, std::is_const_v<T> ? 0 : 1);
    }
  }
};

// `width` elements per channel: 1 in [batch, time, channels].
template <class T>
Track<const T> track(const ConstTensorView& view, std::int64_t b, std::int64_t channel) {
  if (!view) return {};
  return {view.data<T>() + b * view.row_pitch() + channel, view.step_pitch()};
}
template <class T>
Track<T> track(const TensorView& view, std::int64_t b, std::int64_t channel,
               std::int64_t width = 1) {
  if (!view) return {};
  return {view.data<T>() + b * view.row_pitch() + channel * width, view.step_pitch()};
}

// The state rows of a batch row (see RowMap).
class StateRows {
 public:
  explicit StateRows(const RowMap& rows)
      : read_(rows.read ? rows.read.data<std::int32_t>() : nullptr),
        write_(rows.write ? rows.write.data<std::int32_t>() : nullptr) {}

  std::int64_t read(std::int64_t b) const { return read_ != nullptr ? read_[b] : b; }
  std::int64_t write(std::int64_t b) const { return write_ != nullptr ? write_[b] : b; }
  bool is_padding(std::int64_t b) const { return read(b) < 0 && write(b) < 0; }

 private:
  const std::int32_t* read_;
  const std::int32_t* write_;
};

// Where new sequences begin in one batch row.
class Resets {
 public:
  Resets(const ConstTensorView& reset, std::int64_t b)
      : flags_(reset ? reset.data<std::int32_t>() + b * reset.row_pitch() : nullptr) {}

  bool at(std::int64_t t) const { return flags_ != nullptr && flags_[t] != 0; }
  // The first t in (from, end) with a reset, or end.
  std::int64_t next(std::int64_t from, std::int64_t end) const {
    if (flags_ == nullptr) return end;
    std::int64_t t = from + 1;
    while (t < end && flags_[t] == 0) ++t;
    return t;
  }

 private:
  const std::int32_t* flags_;
};

}  // namespace mamba::host
