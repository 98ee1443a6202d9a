// The memory that the generators of a pool live in: one row each of every tensor.
#pragma once

#include <memory>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>

namespace mamba {

struct GeneratorSlots {
  const LanguageModel* model;
  Stream* stream;
  StackState state;
  Tensor logits;  // [capacity, vocab_size] f32
  Tensor seed;    // [capacity, 2] i32: see Sample
  Tensor draws;   // [capacity] i32
  Tensor seen;    // [capacity, vocab_size] i32: which tokens occurred
  Tensor token;   // [capacity] i32: the last chosen
  std::vector<bool> used;

  GeneratorSlots(const LanguageModel& model, std::int64_t capacity, Stream& stream);
  std::int64_t capacity() const { return static_cast<std::int64_t>(used.size()); }
  std::int64_t free() const;
};

// One row, held as long as this lives, and empty (nothing seen) when it is made.
struct GeneratorSlot {
  std::shared_ptr<GeneratorSlots> slots;
  std::int64_t row = 0;

  // ArgumentError in the name of `where` if there is no room.
  GeneratorSlot(const char* where, std::shared_ptr<GeneratorSlots> slots);
  ~GeneratorSlot() { slots->used[static_cast<std::size_t>(row)] = false; }
  GeneratorSlot(const GeneratorSlot&) = delete;
  GeneratorSlot& operator=(const GeneratorSlot&) = delete;

  void set_seed(std::uint64_t value);
  void set_token(std::int32_t value);
  TensorView logits() const { return slots->logits.view().rows(row, 1); }
  TensorView draws() const { return slots->draws.view().rows(row, 1); }
  TensorView seen() const { return slots->seen.view().rows(row, 1); }
  // f(view of this row, view of that row of the other) for every tensor of the state.
  template <class F>
  void each_state(StackState& other, std::int64_t other_row, F f) const {
    for (std::size_t i = 0; i < slots->state.layers.size(); ++i) {
      MambaState& layer = slots->state.layers[i];
      f(layer.conv.view().rows(row, 1), other.layers[i].conv.view().rows(other_row, 1));
      f(layer.ssm.view().rows(row, 1), other.layers[i].ssm.view().rows(other_row, 1));
    }
  }
  StackState copy_state() const;
};

}  // namespace mamba
