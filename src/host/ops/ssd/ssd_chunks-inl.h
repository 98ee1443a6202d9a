// SsdPlan::chunks (Dao & Gu 2024, section 6): within a chunk that begins with state S,
//   y[i] = L[i] S C[i] + sum over j <= i of L[i, j] delta[j] (C[i] . B[j]) x[j] + D x[i]
//   S'   = L[last] S + sum over j of L[last, j] delta[j] x[j] B[j]^T
// with L[i, j] the decay from step j to step i, and L[i] that from the chunk's start. C[i] . B[j]
// is computed once for the heads of an item. States are kept as [state][channel], so that the
// vector lanes are channels. Compiled once for every Highway target.
#if defined(MAMBA_HOST_OPS_SSD_CHUNKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MAMBA_HOST_OPS_SSD_CHUNKS_INL_H_
#undef MAMBA_HOST_OPS_SSD_CHUNKS_INL_H_
#else
#define MAMBA_HOST_OPS_SSD_CHUNKS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include "host/ops/ssd/ssd_head-inl.h"
#include "host/ops/ssd/ssd_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// What one thread does: a run of items, with buffers for one.
template <class T>
class SsdChunks {
 public:
  SsdChunks(const Ssd& op, const SsdItems& items, float* memory)
      : op_(op), items_(items), sizes_(op), rows_(op.rows), pitch_(round_up(sizes_.head_dim, 16)) {
    std::fill_n(memory, SsdChunks::memory(sizes_, items), 0.0f);
    const auto next = [&](std::int64_t count) { return std::exchange(memory, memory + count); };
    for (float** rows : {&B_, &C_, &x_, &y_}) *rows = next(ssd_chunk * wide);
    for (float** rows : {&CB_, &mix_}) *rows = next(ssd_chunk * narrow);
    B_by_state_ = next(sizes_.d_state * narrow);
    state_ = next(items.most_heads() * sizes_.d_state * pitch_);
  }

  // In floats; a multiple of cache lines.
  static std::int64_t memory(const SsdSizes& sizes, const SsdItems& items) {
    return 4 * ssd_chunk * wide + 2 * ssd_chunk * narrow + sizes.d_state * narrow +
           items.most_heads() * sizes.d_state * round_up(sizes.head_dim, 16);
  }

  void run(std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      item_ = items_.at(i);
      if (!rows_.is_padding(item_.b)) sequence();
    }
  }

 private:
  std::int64_t offset(std::int64_t row, std::int64_t k) const {
    return (row * sizes_.heads + item_.head + k) * sizes_.state();
  }
  float* state(std::int64_t k) const { return state_ + k * sizes_.d_state * pitch_; }

  void sequence() {
    const Resets resets(op_.reset, item_.b);
    const std::int64_t read = rows_.read(item_.b), write = rows_.write(item_.b);
    from_zero_ = !op_.initial_state || read < 0;
    for (std::int64_t k = 0; k < item_.heads && !from_zero_; ++k) {
      const float* from = op_.initial_state.data<float>() + offset(read, k);
      transpose(from, sizes_.d_state, state(k), pitch_, sizes_.head_dim, sizes_.d_state);
    }
    for (std::int64_t t = 0; t < sizes_.time;) {
      if (op_.chunk_states && t % op_.chunk_steps == 0) {
        const std::int64_t chunk = item_.b * op_.chunk_states.dim(1) + t / op_.chunk_steps;
        put_states(op_.chunk_states, chunk);
      }
      if (resets.at(t)) from_zero_ = true;
      const std::int64_t kept_steps = op_.chunk_states ? op_.chunk_steps : 0;
      const std::int64_t end = resets.next(t, ssd_chunk_end(t, sizes_.time, kept_steps));
      chunk(t, end - t);
      from_zero_ = false;
      t = end;
    }
    if (op_.final_state && write >= 0) put_states(op_.final_state, write);
  }

  // The heads' states, into a row of [rows, channels, d_state].
  void put_states(const TensorView& view, std::int64_t row) const {
    for (std::int64_t k = 0; k < item_.heads; ++k) {
      float* to = view.data<float>() + offset(row, k);
      if (from_zero_) {
        std::fill_n(to, sizes_.state(), 0.0f);
      } else {
        transpose(state(k), pitch_, to, sizes_.d_state, sizes_.d_state, sizes_.head_dim);
      }
    }
  }

  void chunk(std::int64_t t, std::int64_t steps) {
    const std::int64_t column = item_.group * sizes_.d_state;
    load_steps<T>(op_.B, item_.b, t, steps, column, sizes_.d_state, B_, wide);
    load_steps<T>(op_.C, item_.b, t, steps, column, sizes_.d_state, C_, wide);
    transpose(B_, wide, B_by_state_, narrow, steps, sizes_.d_state);
    Product CB;
    CB.a = C_;
    CB.b = B_by_state_;
    CB.b_pitch = CB.pitch = narrow;
    CB.sums = CB_;
    CB.rows = CB.columns = steps;
    CB.depth = sizes_.d_state;
    CB.lower = true;
    multiply<ByRow<wide>>(CB);
    for (std::int64_t k = 0; k < item_.heads; ++k) one_head(t, steps, k);
  }

  void one_head(std::int64_t t, std::int64_t steps, std::int64_t k) {
    const std::int64_t head = item_.head + k, channel = head * sizes_.head_dim;
    head_.load_from<T>(op_, item_.b, t, steps, head);
    decays_.walk(head_, steps, [&](std::int64_t i) HWY_ATTR {
      for (std::int64_t j = 0; j <= i; j += vector_channels()) {
        const F32Vec CB = load(CB_ + i * narrow + j);
        const F32Vec mix = hn::Mul(hn::Mul(decays_.row(j), load(head_.delta + j)), CB);
        store(mix, mix_ + i * narrow + j);
      }
    });
    load_steps<T>(op_.x, item_.b, t, steps, channel, sizes_.head_dim, x_, wide);
    if (!from_zero_) {
      Product from_state;
      from_state.a = C_;
      from_state.b = state(k);
      from_state.b_pitch = pitch_;
      from_state.sums = y_;
      from_state.pitch = wide;
      from_state.rows = steps;
      from_state.columns = sizes_.head_dim;
      from_state.depth = sizes_.d_state;
      multiply<ByRow<wide>>(from_state);
    }
    start_y(steps, head);
    Product within;
    within.a = mix_;
    within.b = x_;
    within.sums = y_;
    within.b_pitch = within.pitch = wide;
    within.rows = within.depth = steps;
    within.columns = sizes_.head_dim;
    within.add = true;
    multiply<ByRow<narrow>, Over::up_to_row>(within);
    store_steps<T>(y_, wide, op_.y, item_.b, t, steps, channel, sizes_.head_dim);
    advance(steps, k);
  }

  // y becomes D x, and what the chunk's first state adds.
  void start_y(std::int64_t steps, std::int64_t head) {
    const F32Vec D = hn::Set(d_, op_.D ? op_.D.data<float>()[head] : 0);
    for (std::int64_t i = 0; i < steps; ++i) {
      const F32Vec decay = hn::Set(d_, decays_.from_start[i]);
      for (std::int64_t p = 0; p < sizes_.head_dim; p += vector_channels()) {
        float* y = y_ + i * wide + p;
        F32Vec sum = op_.D ? hn::Mul(D, load(x_ + i * wide + p)) : hn::Zero(d_);
        if (!from_zero_) sum = hn::MulAdd(decay, load(y), sum);
        store(sum, y);
      }
    }
  }

  void advance(std::int64_t steps, std::int64_t k) {
    for (std::int64_t j = 0; j < steps; ++j) {
      const F32Vec weight = hn::Set(d_, head_.delta[j] * decays_.to_end[j]);
      for (std::int64_t p = 0; p < sizes_.head_dim; p += vector_channels()) {
        store(hn::Mul(weight, load(x_ + j * wide + p)), x_ + j * wide + p);
      }
    }
    Product next;
    next.a = B_;
    next.a_pitch = next.b_pitch = wide;
    next.b = x_;
    next.sums = state(k);
    next.pitch = pitch_;
    next.rows = sizes_.d_state;
    next.columns = sizes_.head_dim;
    next.depth = steps;
    next.add = !from_zero_;
    next.scale = decays_.from_start[steps - 1];
    multiply<ByColumn>(next);
  }

  static constexpr F32 d_{};

  const Ssd& op_;
  const SsdItems& items_;
  const SsdSizes sizes_;
  const StateRows rows_;
  const std::int64_t pitch_;  // of a state
  HeadSteps head_;
  ChunkDecays decays_;
  float *B_, *C_;           // [steps][d_state]
  float *x_, *y_;           // [steps][head_dim]
  float *CB_, *mix_;        // [steps][steps]
  float* B_by_state_;       // [d_state][steps]
  float* state_;            // [heads][d_state][head_dim]
  bool from_zero_ = false;  // the state counts as zero, whatever is there
  SsdItem item_{};
};

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
