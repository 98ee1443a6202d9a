// The memory that the generators of a pool live in, one row each of every tensor, and the work on
// it: no more than a list of rows goes from the host to the device for a token.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include <mamba/graph.hpp>
#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>

namespace mamba {

// Rows of a pool, in ascending order, as an operand of operations on them.
struct SlotRows {
  std::int64_t count = 0;
  bool leading = false;  // rows 0 to count - 1: a view does
  TensorView list;  // [count] i32, in the pool's own memory; absent where they are all there are
};

// Chosen tokens on their way to the host, of two steps at most: one that is waited for, and one
// that is queued behind it.
class TokensOut {
 public:
  TokensOut(Device device, std::int64_t capacity);
  ~TokensOut();
  TokensOut(const TokensOut&) = delete;
  TokensOut& operator=(const TokensOut&) = delete;

  void send(const Tensor& tokens, Stream& stream);  // queued
  // [capacity], of the oldest step sent and not received; waits for that one alone.
  const std::int32_t* receive();
  void forget() { received_ = sent_; }  // what an error left behind

 private:
  Device device_;
  std::array<Tensor, 2> host_;
  std::array<void*, 2> arrived_{};  // events; none on the CPU
  unsigned sent_ = 0, received_ = 0;
};

struct GeneratorSlots {
  const LanguageModel* model;
  std::unique_ptr<Stream> own;  // none where a stream was given
  Stream* stream;
  StackState state;
  Tensor logits;  // [capacity, vocab_size] f32
  Tensor seed;    // [capacity, 2] i32: see Sample
  Tensor draws;   // [capacity] i32
  Tensor seen;    // [capacity, vocab_size] i32: how often tokens occurred
  Tensor token;   // [capacity] i32: the last chosen
  Tensor temperature, top_p, min_p, repetition_penalty;  // [capacity] f32
  Tensor top_k;                                          // [capacity] i32
  // What is added to logits before a choice, and the sum; absent until a row has such options.
  Tensor bias, biased;         // [capacity, vocab_size] f32
  std::vector<bool> has_bias;  // by row
  std::vector<bool> used;
  TokensOut out;
  // Whether generate() queues a step before it knows the tokens of the last. On the CPU nothing is
  // gained by it.
  bool ahead;

  // On `given`, which must outlive it, or on a stream of its own.
  GeneratorSlots(const LanguageModel& model, std::int64_t capacity, Stream* given = nullptr);
  // Room for others that go on from here: on the same given stream, or on one of their own.
  std::shared_ptr<GeneratorSlots> another(std::int64_t capacity) const;
  std::int64_t capacity() const { return static_cast<std::int64_t>(used.size()); }
  std::int64_t free() const;

  // Whether step() is one graph. (The legacy default stream, which a caller may have lent, cannot
  // be recorded.)
  bool records() const { return reinterpret_cast<std::uintptr_t>(stream->cuda_stream()) > 1; }

  // All of these queue; `rows` are in use until the next call of rows_of.
  SlotRows rows_of(const std::vector<std::int32_t>& rows);
  void feed(const SlotRows& rows, ConstTensorView ids);  // ids [count, time]
  void feed_chosen(const SlotRows& rows);                // feeds the last chosen tokens
  void choose(const SlotRows& rows);
  // feed_chosen() and choose(): on CUDA the first time a call of each operation, then one graph.
  void step(const SlotRows& rows);
  // Why rows of the last choice have no token. On CUDA the stream knows, and has then told it.
  std::exception_ptr no_token();
  // As if `token` had not been chosen, which was the last that was in `row`.
  void unchoose(std::int64_t row, std::int32_t token, const SamplingOptions& options);

 private:
  void choose_each(Sample sample, const SlotRows& rows);
  TensorView add_bias();  // biased = logits + bias
  bool any_bias() const {
    return std::find(has_bias.begin(), has_bias.end(), true) != has_bias.end();
  }

  std::vector<std::int32_t> listed_;  // what is in list_
  Tensor list_;                       // [capacity] i32
  // What a recording depends on: the views, the number of rows, whether there is a bias, and where
  // scratch memory begins.
  using StepKey = std::tuple<bool, std::int64_t, bool, const void*>;
  std::map<StepKey, std::optional<Graph>> graphs_;  // none: has run once and may be recorded
};

// One row, held as long as this lives, and empty (nothing seen) when it is made.
struct GeneratorSlot {
  std::shared_ptr<GeneratorSlots> slots;
  std::int64_t row = 0;

  // ArgumentError in the name of `where` if there is no room.
  GeneratorSlot(const char* where, std::shared_ptr<GeneratorSlots> slots);
  ~GeneratorSlot() {
    slots->used[static_cast<std::size_t>(row)] = false;
    slots->has_bias[static_cast<std::size_t>(row)] = false;
  }
  GeneratorSlot(const GeneratorSlot&) = delete;
  GeneratorSlot& operator=(const GeneratorSlot&) = delete;

  // ArgumentError for ids beyond the vocabulary.
  void set_options(const SamplingOptions& options);
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
      for (const StateTensor& one : state_tensors) {
        Tensor& mine = layer.*one.tensor;
        Tensor& its = other.layers[i].*one.tensor;
        f(mine.view().rows(row, 1), its.view().rows(other_row, 1));
      }
    }
  }
  StackState copy_state(Device device) const;  // one row; done when it returns
};

// For tests, which make a pool on the CPU run ahead as one on CUDA does.
struct GeneratorAccess {
  template <class Pool>
  static GeneratorSlots& slots(Pool& pool) {
    return *pool.slots_;
  }
};

}  // namespace mamba
