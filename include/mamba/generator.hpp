// A text being written: model, memory, random numbers and history in one value that can be forked,
// saved and gone on with in another process as if it had never stopped.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <mamba/generate_options.hpp>
#include <mamba/generator_snapshot.hpp>
#include <mamba/language_model.hpp>
#include <mamba/sampling.hpp>
#include <mamba/state.hpp>
#include <mamba/tokenizer.hpp>

namespace MAMBA_EXPORT mamba {

struct GeneratorSlot;

// One sequence. The model must outlive it, and so must a stream that is given; without one it has
// its own. It belongs to no thread: any may use it, one at a time. Members of a pool, and forks of
// a generator with a given stream, share a stream, and count as one in this.
//
// A generator waits for the work of other streams when it is made, in continue_from() and in
// restore(). If weights change later, wait for that before the next call.
//
// A generator that was moved from can be assigned to and destroyed; its other verbs throw
// ArgumentError.
//
// Between calls the state has seen every token, except perhaps the last one chosen. That one goes
// through the model when next(), read(), snapshot(), save(), fork(), state() or logits() needs it.
class Generator {
 public:
  static constexpr std::size_t longest_stop = 256;
  using Ids = std::vector<std::int32_t>;

  // Alone; see GeneratorPool for several that go through the model together.
  explicit Generator(const LanguageModel& model, const SamplingOptions& options = {});
  Generator(const LanguageModel& model, const SamplingOptions& options, Stream& stream);
  explicit Generator(LanguageModel&& model, const SamplingOptions& options = {}) = delete;
  // Goes on from a snapshot. One of another model is an ArgumentError.
  Generator(const LanguageModel& model, const GeneratorSnapshot& snapshot);
  Generator(const LanguageModel& model, const GeneratorSnapshot& snapshot, Stream& stream);
  Generator(LanguageModel&& model, const GeneratorSnapshot& snapshot) = delete;
  ~Generator();
  Generator(Generator&&) noexcept;
  Generator& operator=(Generator&&) noexcept;

  // Reads more of a prompt, in pieces of any size, at any time. Ids out of range: ArgumentError.
  void read(const Ids& ids);
  // Chooses the next token. ArgumentError before anything was read, and where no logit is finite.
  std::int32_t next();
  // An exception, from a callback too, comes after the tokens so far are part of the text.
  Generated generate(const GenerateOptions& options);
  // Why generate() would end after the last chosen token, whatever max_tokens; for loops of one's
  // own over next().
  std::optional<StopReason> stopped(const GenerateOptions& options) const;
  // The same text that on_text gets, for the last chosen token.
  std::string text(const GenerateOptions& options);
  // The log-probability of the last chosen token, and of the `top` likeliest in its place, as
  // GenerateOptions::log_probs. ArgumentError once that token has gone through the model, or where
  // a Speculation has chosen it.
  LogProbs log_probs(std::int64_t top = 0) const;
  // The text ends here. Returns U+FFFD if a character is incomplete, else nothing. That character,
  // and what was held back after a stop string, are discarded.
  std::string finish_text();

  // The same verbs for several of one pool: one run of the model for all. No member knows of the
  // others, and prompts may be of any lengths: nothing is padded. A Generator that is there twice
  // or belongs to another pool is an ArgumentError before any work.
  //
  // What goes wrong with one member after that (no finite logit, a callback that throws) is told in
  // its own result, and the others go on. What goes wrong with the device is told in all of them.
  using Group = std::vector<Generator*>;
  static void read(const Group& group, const std::vector<Ids>& prompts);
  static std::vector<Chosen> next(const Group& group);
  // `options` has one element for all members, or one for each. A member that has finished drops
  // out; the others go on.
  static std::vector<Generated> generate(const Group& group,
                                         const std::vector<GenerateOptions>& options);

  // An independent continuation: the same state, history and random numbers.
  Generator fork();
  // k of them, the first as fork(), the others with other random numbers. In the same pool if it
  // has room for all, else in a new one. Only states are copied.
  std::vector<Generator> fork(std::int64_t k);
  // Other random numbers from here on.
  void reseed(std::uint64_t seed);
  // Other ways of choosing from here on, say after a snapshot that another wrote. Random numbers go
  // on with the next one that was not used: with the seed of before they are those that would have
  // come. ArgumentError as for a new generator; the options are then as they were.
  void set_options(const SamplingOptions& options);

  // Takes over the state after `ids` (at least one) and the logits [1, vocab_size] that follow
  // them, both on one device, which may be another than the model's, as if the ids had been read
  // here (StateCache). ArgumentError if anything was read before.
  void continue_from(const Ids& ids, const StackState& state, ConstTensorView logits);

  // All of this as a value that outlives the generator and its place in a pool, in the memory of
  // the model's device or of another. It takes a copy of one row of the state, and the model's
  // fingerprint, which is read from all weights where they were not loaded or may have changed
  // since; fork() takes the copy alone.
  GeneratorSnapshot snapshot();
  GeneratorSnapshot snapshot(Device device);
  // Puts a snapshot back, whatever was written since: an ArgumentError if it is of another model.
  // This is also the way to take tokens back, since a recurrent state that has seen a token cannot
  // forget it: there is no truncate(n) without a snapshot from before.
  void copy_from(const GeneratorSnapshot& snapshot);

  // A snapshot in a state file, and on from there for the same model: a file of another, or one
  // that is not what was written, is a FormatError that says so. Both runs give the same tokens.
  void save(const std::string& path);
  static Generator restore(const std::string& path, const LanguageModel& model, Stream& stream);
  static Generator restore(const std::string& path, const LanguageModel& model);
  static Generator restore(const std::string& path, LanguageModel&& model) = delete;

  const LanguageModel& model() const;
  Stream& stream() const;
  const SamplingOptions& options() const { return options_; }
  // Every token read and generated, also the last one chosen.
  std::int64_t tokens_seen() const { return slot_ ? tokens_seen_ + (pending_ ? 1 : 0) : 0; }
  StackState state();        // after every token; a copy
  ConstTensorView logits();  // [1, vocab_size] f32, for the next token; until that is chosen

 private:
  friend class GeneratorPool;
  friend class Speculation;
  GeneratorSlot& slot() const;  // ArgumentError in a Generator that was moved from
  explicit Generator(std::unique_ptr<GeneratorSlot> slot, const SamplingOptions& options);
  static Generator restore(const std::string& path, std::unique_ptr<GeneratorSlot> slot);
  static Group in_order(const char* where, const Group& group);
  static void check_read(const char* where, const Group& group);
  static void feed_pending(const Group& group);  // pending tokens go through the model
  static void feed(const Group& group, ConstTensorView ids);
  // After these the tokens are on their way to the host.
  static void choose(const Group& group);
  static void run_together(const Group& group, const std::vector<GenerateOptions>& options,
                           std::vector<std::size_t>& active, std::vector<Generated>& results);
  static void step(const Group& group);
  static void run_ahead(const Group& group, const std::vector<GenerateOptions>& options,
                        std::vector<std::size_t>& active, std::vector<Generated>& results);
  void feed_pending() { feed_pending(Group{this}); }
  void put_back(const char* where, const GeneratorSnapshot& snapshot);
  void set_snapshot(const GeneratorSnapshot& snapshot);
  void set_state(const StackState& state, ConstTensorView logits);
  void mark_seen(const Ids& ids);
  void push(std::int32_t token);
  void copy_to(Generator& other) const;
  // Of a token just chosen from `logits`, if the options ask for it.
  std::optional<LogProbs> odds(const GenerateOptions& options, std::int32_t token,
                               ConstTensorView logits) const;
  std::optional<StopReason> receive(const GenerateOptions& options, std::int32_t token,
                                    std::optional<LogProbs> odds, Generated& result);
  static bool goes_on(Generator& member, const GenerateOptions& options, std::int32_t token,
                      std::optional<LogProbs> odds, Generated& result);
  bool is_eos(std::int32_t token) const;
  std::optional<std::size_t> stop_end(const GenerateOptions& options,
                                      const std::string& last) const;

  std::unique_ptr<GeneratorSlot> slot_;
  SamplingOptions options_;
  Ids recent_;                    // the last generated tokens, longest_stop at most
  TextStream text_;               // the bytes of a character that has only begun
  std::string after_stop_;        // what the last token holds after a stop string
  std::int64_t tokens_seen_ = 0;  // that have been through the model
  bool pending_ = false;          // the last of recent_ has not been through the model
  bool lent_ = false;             // to a Speculation since logits() were last computed here
};

struct GeneratorSlots;

// Room for up to `capacity` sequences that go through the model together (continuous batching):
// they join when they are made, leave when they are destroyed, and the others go on meanwhile.
// Memory is taken once. The generators may outlive the pool. Like a Generator it has a stream of
// its own unless one is given, which must outlive it.
class GeneratorPool {
 public:
  GeneratorPool(const LanguageModel& model, std::int64_t capacity);
  GeneratorPool(const LanguageModel& model, std::int64_t capacity, Stream& stream);
  GeneratorPool(LanguageModel&& model, std::int64_t capacity) = delete;

  // ArgumentError if there is no room.
  Generator make(const SamplingOptions& options = {});
  // Goes on from a snapshot. One of another model is an ArgumentError.
  Generator make(const GeneratorSnapshot& snapshot);
  Generator restore(const std::string& path);

  std::int64_t capacity() const;
  std::int64_t size() const;  // generators that live

 private:
  friend struct GeneratorAccess;
  const std::shared_ptr<GeneratorSlots>& slots() const;  // ArgumentError where it was moved from
  std::shared_ptr<GeneratorSlots> slots_;
};

}  // namespace mamba
