// What the two recurrences (causal_conv.cpp, selective_scan.cpp) share: how [batch, time, channels]
// is cut into items and the items over threads, which state rows a batch row stands for, and where
// sequences begin. Items share no sum: that is why neither the number of threads nor the company in
// the batch can change a bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include <mamba/ops.hpp>

#include "detail/stream_access.hpp"

namespace mamba::host {

// Panels of channels are multiples of this, but for the last one: two AVX-512 vectors, and a whole
// cache line also in 16-bit storage.
constexpr std::int64_t panel_unit = 32;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// An item is one batch row of one panel of channels, walked in time. Panels are as wide as their
// buffers allow, because memory is fast along rows only. Items are ordered by panel, then by batch
// row, so that what depends on the channels alone (transposed weights) is made once for a run of
// items.
struct Items {
  std::int64_t batch = 0;
  std::int64_t channels = 0;
  std::int64_t panel_channels = panel_unit;

  std::int64_t count() const {
    return batch * (round_up(channels, panel_channels) / panel_channels);
  }
  std::int64_t row(std::int64_t item) const { return item % batch; }
  std::int64_t channel(std::int64_t item) const { return item / batch * panel_channels; }
  std::int64_t channels_of(std::int64_t item) const {
    return std::min(panel_channels, channels - channel(item));
  }
};

// As many threads as have `smallest` units of work each. Waking a thread costs several
// microseconds, so a single step of a small layer stays on the caller's.
inline int useful_threads(const Stream& stream, std::int64_t work, std::int64_t smallest) {
  return static_cast<int>(std::clamp<std::int64_t>(work / smallest, 1, stream.threads()));
}

// Panels of at most `largest` channels; for several threads narrow enough that each has four items,
// so that they end together.
inline Items cut(std::int64_t batch, std::int64_t channels, std::int64_t largest, int threads) {
  const std::int64_t wanted = threads > 1 ? round_up(4 * threads, batch) / batch : 1;
  const std::int64_t even = round_up(round_up(channels, wanted) / wanted, panel_unit);
  const std::int64_t most = std::max(largest / panel_unit, std::int64_t{1}) * panel_unit;
  return {batch, channels, std::min(even, most)};
}

// f(first item, one past the last, a row of `memory` of its own) for each of `threads` runs of
// items.
template <class F>
void each_thread(Stream& stream, int threads, std::int64_t items, const TensorView& memory,
                 const F& f) {
  float* base = memory.data<float>();
  StreamAccess::team(stream).run(threads, [&](int i) {
    f(items * i / threads, items * (i + 1) / threads, base + i * memory.row_pitch());
  });
}

// One operand's part in an item: its channels, over time.
template <class T>
struct Track {
  T* first = nullptr;  // absent: nullptr
  std::int64_t pitch = 0;

  explicit operator bool() const { return first != nullptr; }
  T* at(std::int64_t t) const { return first + t * pitch; }
};

// `width` elements per channel: 1 in [batch, time, channels]. A view of no steps may have no
// memory: it counts as absent, for nothing may be added to its pointer.
template <class T>
Track<const T> track(const ConstTensorView& view, std::int64_t b, std::int64_t channel) {
  if (view.data() == nullptr) return {};
  return {view.data<T>() + b * view.row_pitch() + channel, view.step_pitch()};
}
template <class T>
Track<T> track(const TensorView& view, std::int64_t b, std::int64_t channel,
               std::int64_t width = 1) {
  if (view.data() == nullptr) return {};
  return {view.data<T>() + b * view.row_pitch() + channel * width, view.step_pitch()};
}

// A weight's gradient from those of the batch rows, [batch, ...] in `rows`, added in their order.
// `to` is dense f32 and may be absent.
inline void add_batch_rows(const float* rows, std::int64_t batch, const TensorView& to,
                           bool accumulate) {
  if (!to) return;
  float* y = to.data<float>();
  const std::int64_t width = to.count();
  for (std::int64_t i = 0; i < width; ++i) {
    float sum = 0;
    for (std::int64_t b = 0; b < batch; ++b) sum += rows[b * width + i];
    y[i] = accumulate ? y[i] + sum : sum;
  }
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
