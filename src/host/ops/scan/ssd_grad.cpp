// SsdGrad on the CPU: the kept states' chunks from the last to the first, each from the states at
// the beginnings of its own chunks, which are computed again. Items are cut by shapes alone: the
// same bits for any number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/scan/ssd_grad.cpp"
#include <hwy/foreach_target.h>

#include <algorithm>
#include <cstdint>

#include "detail/backend.hpp"
#include "detail/visit.hpp"
#include "host/ops/scan/ssd_grad_chunk-inl.h"
#include "host/ops/scan/ssd_grad_sums.hpp"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class SsdGradItems {
 public:
  SsdGradItems(const SsdGrad& op, const SsdItems& items, const SsdGradSums& sums, float* memory)
      : op_(op), items_(items), sums_(sums), sizes_(op), chunk_(op, memory) {
    std::fill_n(memory, SsdGradItems::memory(op, items), 0.0f);
    G_ = memory + SsdGradChunk<T>::memory(sizes_);
    states_ = G_ + items.most_heads() * state_size(sizes_);
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(const SsdGrad& op, const SsdItems& items) {
    const SsdSizes sizes(op);
    return SsdGradChunk<T>::memory(sizes) +
           (1 + chunks(op)) * items.most_heads() * state_size(sizes);
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      at_ = i;
      item_ = items_.at(i);
      sequence();
    }
  }

 private:
  static std::int64_t state_size(const SsdSizes& sizes) {
    return sizes.head_dim * SsdGradChunk<T>::odd_pitch(sizes.d_state);
  }
  // Of ssd_chunk steps, in one of chunk_steps.
  static std::int64_t chunks(const SsdGrad& op) {
    return (std::min(op.chunk_steps, op.x.dim(1)) + ssd_chunk - 1) / ssd_chunk;
  }
  float* G(std::int64_t k) const { return G_ + k * state_size(sizes_); }
  float* state(std::int64_t chunk, std::int64_t k) const {
    return states_ + (chunk * items_.most_heads() + k) * state_size(sizes_);
  }
  // In a tensor of [rows, channels, d_state].
  std::int64_t offset(std::int64_t row, std::int64_t k) const {
    return (row * sizes_.heads + item_.head + k) * sizes_.state();
  }
  // Zeros beside it, up to a whole vector.
  void take(const ConstTensorView& view, std::int64_t row, std::int64_t k, float* to) const {
    load_block(view.data<float>() + offset(row, k), sizes_.d_state, sizes_.head_dim, sizes_.d_state,
               to, chunk_.state_pitch());
  }

  void sequence() {
    std::fill_n(head_sums_, items_.most_heads(), SsdGradHeadSums());
    G_is_zero_ = !op_.dfinal_state;
    for (std::int64_t k = 0; k < item_.heads && !G_is_zero_; ++k) {
      take(op_.dfinal_state, item_.b, k, G(k));
    }
    for (std::int64_t kept = op_.chunk_states.dim(1) - 1; kept >= 0; --kept) kept_chunk(kept);
    for (std::int64_t k = 0; k < item_.heads; ++k) {
      const std::int64_t head = item_.head + k;
      sums_.dA_log(item_.b, head) = head_sums_[k].dA_log;
      sums_.dD(item_.b, head) = head_sums_[k].dD;
      sums_.ddt_bias(item_.b, head) = head_sums_[k].ddt_bias;
      if (op_.dinitial_state) put_dinitial(k);
    }
  }

  void put_dinitial(std::int64_t k) const {
    float* to = op_.dinitial_state.data<float>() + offset(item_.b, k);
    if (G_is_zero_) std::fill_n(to, sizes_.state(), 0.0f);
    for (std::int64_t p = 0; p < sizes_.head_dim && !G_is_zero_; ++p) {
      std::copy_n(G(k) + p * chunk_.state_pitch(), sizes_.d_state, to + p * sizes_.d_state);
    }
  }

  void kept_chunk(std::int64_t kept) {
    const Resets resets(op_.reset, item_.b);
    const std::int64_t first = kept * op_.chunk_steps;
    const std::int64_t last = std::min(first + op_.chunk_steps, sizes_.time);
    const std::int64_t row = item_.b * op_.chunk_states.dim(1) + kept;
    for (std::int64_t k = 0; k < item_.heads; ++k) take(op_.chunk_states, row, k, state(0, k));
    for (std::int64_t t = first; t + ssd_chunk < last; t += ssd_chunk) {
      next_states(resets, (t - first) / ssd_chunk, t);
    }
    for (std::int64_t end = last; end > first;) {
      const std::int64_t whole = (end - 1 - first) / ssd_chunk;
      const std::int64_t t = beginning(resets, first + whole * ssd_chunk, end);
      chunk(whole, t, end - t, resets.at(t));
      end = t;
    }
  }

  // Of what ends at `end`: the last reset before it, or `first`.
  static std::int64_t beginning(const Resets& resets, std::int64_t first, std::int64_t end) {
    std::int64_t t = end - 1;
    while (t > first && !resets.at(t)) --t;
    return t;
  }

  // The states after chunk `whole`, which begins at t.
  void next_states(const Resets& resets, std::int64_t whole, std::int64_t t) {
    const std::int64_t from = beginning(resets, t, t + ssd_chunk), steps = t + ssd_chunk - from;
    chunk_.load_B(item_.b, from, steps, item_.group);
    for (std::int64_t k = 0; k < item_.heads; ++k) {
      const float* before = resets.at(from) ? nullptr : state(whole, k);
      chunk_.advance(item_.b, from, steps, item_.head + k, before, state(whole + 1, k));
    }
  }

  void chunk(std::int64_t whole, std::int64_t t, std::int64_t steps, bool reset) {
    chunk_.begin(item_.b, t, steps, item_.group);
    for (std::int64_t k = 0; k < item_.heads; ++k) {
      const float* before = reset ? nullptr : state(whole, k);
      chunk_.head(item_.head + k, before, G(k), G_is_zero_, !reset, head_sums_[k]);
    }
    chunk_.put(sums_.dBC(at_, t));
    G_is_zero_ = reset;
  }

  const SsdGrad& op_;
  const SsdItems& items_;
  const SsdGradSums& sums_;
  const SsdSizes sizes_;
  SsdGradChunk<T> chunk_;
  float* G_;                // [heads][head_dim][d_state]: the gradient of the state at hand
  float* states_;           // [chunks][heads][head_dim][d_state]: before each chunk
  bool G_is_zero_ = false;  // whatever is there
  SsdGradHeadSums head_sums_[ssd_grad_heads];
  std::int64_t at_ = 0;
  SsdItem item_{};
};

void ssd_grad_items(const SsdGrad& op, const SsdItems& items, const SsdGradSums& sums,
                    std::int64_t first, std::int64_t last, float* memory) {
  detail::visit(op.x.dtype(), [&](auto type) {
    SsdGradItems<typename decltype(type)::type>(op, items, sums, memory).run(first, last);
  });
}

std::int64_t ssd_grad_memory(const SsdGrad& op, const SsdItems& items) {
  return SsdGradItems<float>::memory(op, items);
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mamba::host {

HWY_EXPORT(ssd_grad_items);
HWY_EXPORT(ssd_grad_memory);

void run(const SsdGrad& op, Stream& stream) {
  const SsdSizes sizes(op);
  const int threads = useful_threads(stream, 3 * sizes.work(), 1 << 16);
  const SsdItems items(sizes, ssd_grad_heads, ssd_grad_heads);
  Scratch scratch(stream);
  const SsdGradSums sums(op, items, scratch);
  const std::int64_t each = HWY_DYNAMIC_DISPATCH(ssd_grad_memory)(op, items);
  const TensorView memory = scratch.take({threads, each}, DType::f32);
  each_thread(stream, threads, items.count(), memory,
              [&](std::int64_t first, std::int64_t last, float* slice) {
                HWY_DYNAMIC_DISPATCH(ssd_grad_items)(op, items, sums, first, last, slice);
              });
  sums.finish(stream, threads);
}

}  // namespace mamba::host
#endif  // HWY_ONCE
