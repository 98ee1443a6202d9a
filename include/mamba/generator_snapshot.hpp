// A generation as a value, apart from any generator, pool or file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <mamba/bytes.hpp>
#include <mamba/sampling.hpp>
#include <mamba/state.hpp>
#include <mamba/state_file.hpp>

namespace MAMBA_EXPORT mamba {

class LanguageModel;

// Everything with which a text goes on token for token as the generator would have written it: the
// state, the logits, the sampling options with the random numbers used so far, the tokens that the
// repetition penalty and stop strings know of, and text that was held back (half a character, what
// stands behind a stop string). Generator::snapshot() makes one.
//
// It is constant once made, and any number of threads may use one at once. It needs neither the
// generator nor its pool any more. The model that goes on from it must be the one that it was taken
// from, by its fingerprint, in the same dtype, but may be on another device. A snapshot that was
// moved from can be assigned to and destroyed; its other verbs throw ArgumentError.
class GeneratorSnapshot {
 public:
  ~GeneratorSnapshot();
  GeneratorSnapshot(GeneratorSnapshot&&) noexcept;
  GeneratorSnapshot& operator=(GeneratorSnapshot&&) noexcept;
  // The same value once more. The two share their memory, which nothing changes.
  GeneratorSnapshot clone() const;
  // With its tensors in the memory of another device: on the CPU it takes none of a GPU's memory.
  GeneratorSnapshot to(Device device) const;

  // A state file (state_file.hpp) with the model's fingerprint and a hash of its contents, or the
  // bytes of that file. What load() is given must be what was written; else, FormatError. `name`
  // stands for the path in errors.
  //
  // `extras` are tensors of the caller's, which lie beside it under their own names and are part of
  // the hash; SafetensorsFile and load_state() give them back. Names that start with "layers." or
  // "generator." are ArgumentErrors. They are on the CPU.
  void save(const std::string& path, const StateExtras& extras = {}) const;
  [[nodiscard]] Bytes save(const StateExtras& extras = {}) const;
  static GeneratorSnapshot load(const std::string& path);
  static GeneratorSnapshot load(ByteView bytes, const std::string& name = "bytes");

  // ArgumentError unless `model`, on whichever device, can go on from this.
  void check(const LanguageModel& model) const;

  const SamplingOptions& options() const;
  std::int64_t tokens_seen() const;        // read and generated
  const StackState& state() const;         // of one row, after all of them
  const Tensor& logits() const;            // [1, vocab_size] f32, for the next token
  const std::string& fingerprint() const;  // of the model
  Device device() const;                   // of state and logits
  std::int64_t bytes() const;              // of memory, that of the host included

 private:
  friend class Generator;
  struct Content;
  explicit GeneratorSnapshot(std::shared_ptr<const Content> content);
  const Content& content() const;
  std::shared_ptr<const Content> content_;
};

}  // namespace mamba
