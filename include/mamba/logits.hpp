// Which logits LanguageModel::forward computes, and where it puts them.
#pragma once

#include <cstdint>

#include <mamba/tensor_view.hpp>

namespace MAMBA_EXPORT mamba {

// No view converts to this: a call says which. `to` is f32, dense and on the model's device.
class Logits {
 public:
  // Of every position: `to` is [batch, time, vocab_size].
  static Logits all(TensorView to) { return Logits(Positions::all, to); }
  // Of the last position: `to` is [batch, vocab_size], and time at least 1.
  static Logits last(TensorView to) { return Logits(Positions::last, to); }
  // Of no position: only the state goes on, and the head is not computed.
  static Logits none() { return Logits(Positions::none, {}); }

 private:
  friend class LanguageModel;
  enum class Positions { none, last, all };

  Logits(Positions positions, TensorView to) : positions_(positions), to_(to) {}

  void check(const char* where, std::int64_t batch, std::int64_t time, std::int64_t vocab_size,
             Device device) const;
  // The part of `to` for `count` steps from `first` on, of a call of `time` steps: [batch, n,
  // vocab_size] for the last n of these steps, all of them or one; absent if none is wanted.
  TensorView of_steps(std::int64_t first, std::int64_t count, std::int64_t time) const {
    if (positions_ == Positions::all) return to_.steps(first, count);
    if (positions_ == Positions::none || first + count < time) return {};
    return to_.reshape({to_.dim(0), 1, to_.dim(1)});
  }

  Positions positions_;
  TensorView to_;
};

}  // namespace mamba
