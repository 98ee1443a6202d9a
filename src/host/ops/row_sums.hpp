// Operations that go row by row and may sum over the rows: rows are cut over threads, each thread
// sums on its own, and the sums are added in the order of the rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include <mamba/ops.hpp>

#include "detail/stream_access.hpp"

namespace mamba::host {

// Sums of [lists, channels] over rows, a copy for each thread.
class RowSums {
 public:
  // Room for a whole vector beyond the last channel, so that kernels store whole vectors only.
  static constexpr std::int64_t padding = 64;

  RowSums(Scratch& scratch, int threads, int lists, std::int64_t channels)
      : threads_(threads), lists_(lists), pitch_(channels + padding), channels_(channels) {
    sums_ = scratch.take({threads, lists, pitch_}, DType::f32).data<float>();
    std::fill_n(sums_, threads * lists * pitch_, 0.0f);
  }

  float* of(int thread, int list) const { return sums_ + (thread * lists_ + list) * pitch_; }

  // to = the sum, or to + the sum. `to` [channels] f32 may be absent.
  void finish(int list, const TensorView& to, bool accumulate) const {
    if (!to) return;
    float* y = to.data<float>();
    for (std::int64_t c = 0; c < channels_; ++c) {
      float sum = of(0, list)[c];
      for (int i = 1; i < threads_; ++i) sum += of(i, list)[c];
      y[c] = accumulate ? y[c] + sum : sum;
    }
  }

 private:
  int threads_;
  int lists_;
  std::int64_t pitch_;
  std::int64_t channels_;
  float* sums_;
};

// As many threads as have 2^16 values each; waking one takes about 2 us.
inline int row_threads(const Stream& stream, std::int64_t rows, std::int64_t values) {
  const auto most = std::min<std::int64_t>(rows, stream.threads());
  return static_cast<int>(
      std::clamp<std::int64_t>(values >> 16, 1, std::max<std::int64_t>(1, most)));
}

// f(thread, first row, one past the last).
template <class F>
void each_row_range(Stream& stream, int threads, std::int64_t rows, const F& f) {
  StreamAccess::team(stream).run(
      threads, [&](int i) { f(i, rows * i / threads, rows * (i + 1) / threads); });
}

}  // namespace mamba::host
