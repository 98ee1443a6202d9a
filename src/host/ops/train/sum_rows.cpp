// SumRows and EmbeddingGrad: rows added to one row, or to the rows of a table.
#include "host/ops/row_sums.hpp"

#include <fmt/format.h>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/visit.hpp"

namespace mamba::host {

void run(const SumRows& op, Stream& stream) {
  const detail::ChannelRows rows(op.x);
  const std::int64_t channels = op.y.dim(0);
  const int threads = row_threads(stream, rows.count(), op.x.count());
  Scratch scratch(stream);
  const RowSums sums(scratch, threads, 1, channels);
  each_row_range(stream, threads, rows.count(), [&](int i, std::int64_t first, std::int64_t last) {
    detail::visit(op.x.dtype(), [&](auto type) {
      using T = typename decltype(type)::type;
      float* sum = sums.of(i, 0);
      for (std::int64_t r = first; r < last; ++r) {
        const T* x = op.x.data<T>() + rows.offset(r);
        for (std::int64_t c = 0; c < channels; ++c) sum[c] += static_cast<float>(x[c]);
      }
    });
  });
  sums.finish(0, op.y, op.accumulate);
}

// Threads share the columns, so that every sum is one thread's and in the order of the rows.
void run(const EmbeddingGrad& op, Stream& stream) {
  const std::int64_t vocab = op.dtable.dim(0);
  const auto* ids = op.ids.data<std::int32_t>();
  for (std::int64_t b = 0; b < op.ids.dim(0); ++b) {
    for (std::int64_t t = 0; t < op.ids.dim(1); ++t) {
      const std::int32_t id = ids[b * op.ids.row_pitch() + t];
      if (id < 0 || id >= vocab) {
        throw ArgumentError("embedding_grad", "ids",
                            vocab > 0 ? fmt::format("0 to {}", vocab - 1) : "no ids (empty table)",
                            fmt::format("{}", id));
      }
    }
  }
  if (!op.accumulate) zero(op.dtable, stream);
  if (op.dy.count() == 0) return;
  const std::int64_t width = op.dtable.dim(1);
  const int threads = row_threads(stream, width, op.dy.count());
  StreamAccess::team(stream).run(threads, [&](int i) {
    const std::int64_t first = width * i / threads;
    const std::int64_t last = width * (i + 1) / threads;
    detail::visit(op.dy.dtype(), [&](auto type) {
      using T = typename decltype(type)::type;
      for (std::int64_t b = 0; b < op.ids.dim(0); ++b) {
        for (std::int64_t t = 0; t < op.ids.dim(1); ++t) {
          const std::int64_t id = ids[b * op.ids.row_pitch() + t];
          float* to = op.dtable.data<float>() + id * op.dtable.row_pitch();
          const T* dy = op.dy.data<T>() + b * op.dy.row_pitch() + t * op.dy.step_pitch();
          for (std::int64_t c = first; c < last; ++c) to[c] += static_cast<float>(dy[c]);
        }
      }
    });
  });
}

}  // namespace mamba::host
