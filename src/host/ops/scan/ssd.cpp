// Ssd on the CPU: which plan, cut how over threads. Items share no sum, so neither the number of
// threads nor the company in the batch can change a bit.
#include "host/ops/scan/ssd.hpp"

#include <cstring>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/scan/ssd_items.hpp"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/scan/ssd.cpp"
#include <hwy/foreach_target.h>

#include "host/ops/scan/ssd_chunks-inl.h"
#include "host/ops/scan/ssd_steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

void ssd_items(const Ssd& op, SsdPlan plan, const SsdItems& items, std::int64_t first,
               std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if (plan == SsdPlan::steps) {
      SsdSteps<T>(op, items, memory).run(first, last);
    } else {
      SsdChunks<T>(op, items, memory).run(first, last);
    }
  });
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(ssd_items);

namespace {

// A padding row: outputs are zeros, whatever the inputs hold.
void pad(const Ssd& op, std::int64_t b) {
  const auto zero_steps = [b](const TensorView& view, std::int64_t width) {
    auto* row = static_cast<char*>(view.data()) + b * view.row_pitch() * size_of(view.dtype());
    for (std::int64_t t = 0; t < view.dim(1); ++t) {
      std::memset(row + t * view.step_pitch() * size_of(view.dtype()), 0,
                  static_cast<std::size_t>(width * size_of(view.dtype())));
    }
  };
  const std::int64_t state = op.x.dim(2) * SsdSizes(op).d_state;
  zero_steps(op.y, op.x.dim(2));
  if (op.step_states) zero_steps(op.step_states, state);
  if (op.chunk_states) zero_steps(op.chunk_states, state);
}

}  // namespace

// The gradient recomputes the states of the chunks between. With 24 heads of 64 channels and 128
// states, keeping one every 64 steps takes a fifth more time than keeping none, and one every 256
// nothing that can be measured.
std::int64_t scan_chunk_steps(const Ssd&, const Stream&) { return 4 * ssd_chunk; }

bool can_run(const Ssd& op, SsdPlan plan) { return plan == SsdPlan::steps || !op.step_states; }

// In heads of 64 channels chunks take 1.4 times as long as single steps at 8 of them, 0.9 to 1.0 at
// 16 and 0.6 to 0.9 at 64. In heads of 8 channels, half of a vector of AVX-512, they take twice as
// long at any number, in heads of 16 as long.
SsdPlan plan(const Ssd& op) {
  const bool many = op.x.dim(1) >= 16 && SsdSizes(op).head_dim >= 16;
  return many && can_run(op, SsdPlan::chunks) ? SsdPlan::chunks : SsdPlan::steps;
}

void run(const Ssd& op, Stream& stream, SsdPlan plan) {
  const SsdSizes sizes(op);
  if (sizes.batch == 0) return;
  const StateRows rows(op.rows);
  for (std::int64_t b = 0; b < sizes.batch; ++b) {
    if (rows.is_padding(b)) pad(op, b);
  }
  const int threads = useful_threads(stream, sizes.work() + sizes.batch * op.x.dim(2), 1 << 16);
  const SsdItems items(sizes, threads > 1 ? 4 * threads : 1, 16);
  const std::int64_t each = plan == SsdPlan::steps
                                ? HWY_NAMESPACE::SsdSteps<float>::memory(sizes, items)
                                : HWY_NAMESPACE::SsdChunks<float>::memory(sizes, items);
  Scratch scratch(stream);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(stream, threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(ssd_items)(op, plan, items, first, last, slice);
              });
}

void run(const Ssd& op, Stream& stream) { run(op, stream, plan(op)); }

}  // namespace mamba::host
#endif  // HWY_ONCE
