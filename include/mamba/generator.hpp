// A text being written: model, memory, random numbers and history in one value that can be forked,
// saved and gone on with in another process as if it had never stopped.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>
#include <mamba/state.hpp>
#include <mamba/tokenizer.hpp>

namespace mamba {

// When generate() ends.
struct GenerateOptions {
  std::int64_t max_tokens = 128;
  bool ignore_eos = false;  // false: after one of config().eos_token_ids
  // After the token that completes one of these in the decoded text of this and earlier calls.
  // Needs a tokenizer; each 1 to Generator::longest_stop bytes.
  std::vector<std::string> stop;
  const Tokenizer* tokenizer = nullptr;
  // Called with every token as soon as it is chosen; false ends after it.
  std::function<bool(std::int32_t token)> on_token;
};

enum class StopReason { max_tokens, eos, stop_string, callback };

struct Generated {
  std::vector<std::int32_t> tokens;
  StopReason reason = StopReason::max_tokens;
};

// One sequence. The model and the stream must outlive it. Not for two threads at once.
//
// Between calls the state has seen every token but perhaps the last one chosen, which goes through
// the model when it is needed: by next(), read(), save(), fork(), state() or logits().
class Generator {
 public:
  static constexpr std::size_t longest_stop = 256;

  explicit Generator(const LanguageModel& model, const SamplingOptions& options = {});
  Generator(const LanguageModel& model, const SamplingOptions& options, Stream& stream);
  explicit Generator(LanguageModel&& model, const SamplingOptions& options = {}) = delete;

  // Reads more of a prompt, in pieces of any size, at any time. Ids out of range: ArgumentError.
  void read(const std::vector<std::int32_t>& ids);
  // Chooses the next token. ArgumentError before anything was read.
  std::int32_t next();
  Generated generate(const GenerateOptions& options);

  // An independent continuation: the same state, history and random numbers. With a seed, other
  // random numbers from here on.
  Generator fork();
  Generator fork(std::uint64_t seed);

  // Writes everything to a state file, with the model's fingerprint; restore() goes on from one,
  // for the same model: a file of another is a FormatError that says so. Both runs give the same
  // tokens.
  void save(const std::string& path);
  static Generator restore(const std::string& path, const LanguageModel& model, Stream& stream);
  static Generator restore(const std::string& path, const LanguageModel& model);

  const SamplingOptions& options() const { return options_; }
  std::int64_t tokens_seen() const { return tokens_seen_; }  // read and generated
  const StackState& state();                                 // after every token
  const Tensor& logits();  // [1, vocab_size] f32, for the next token

 private:
  void settle();  // the pending token, if any, goes through the model
  void feed(ConstTensorView ids);
  void mark_seen(const std::vector<std::int32_t>& ids);
  bool completes(const GenerateOptions& options) const;

  const LanguageModel* model_;
  Stream* stream_;
  SamplingOptions options_;
  StackState state_;
  Tensor logits_;                     // [1, vocab_size] f32
  Tensor seed_;                       // [1, 2] i32: see Sample
  Tensor draws_;                      // [1] i32
  Tensor seen_;                       // [1, vocab_size] i32: which tokens occurred
  Tensor token_;                      // [1] i32: the last chosen
  std::vector<std::int32_t> recent_;  // the last generated tokens, longest_stop at most
  std::int64_t tokens_seen_ = 0;
  bool pending_ = false;  // the last of recent_ has not been through the model
};

}  // namespace mamba
