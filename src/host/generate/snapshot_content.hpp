// What a GeneratorSnapshot holds, and how it comes out of a state file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <mamba/generator_snapshot.hpp>
#include <mamba/language_model.hpp>
#include <mamba/state_file.hpp>

namespace mamba {

struct Misfit {
  std::string expected, got;
};

// Where a fingerprint is not `model`'s.
std::optional<Misfit> misfit_of(const std::string& fingerprint, const LanguageModel& model);

struct GeneratorSnapshot::Content {
  std::string fingerprint;  // of the model
  StackState state;         // of one row
  Tensor logits;            // [1, vocab_size] f32, on the state's device
  SamplingOptions options;
  std::int32_t draws = 0;            // random numbers used so far (Sample)
  std::vector<std::int32_t> seen;    // ids for the repetition penalty, ascending
  std::vector<std::int32_t> recent;  // Generator::recent_
  std::string held;                  // bytes of a character that has only begun
  std::string after_stop;            // what the last token holds after a stop string
  std::int64_t tokens_seen = 0;

  // What keeps `model`, which wrote it, from going on from this. `where` is who asks.
  std::optional<Misfit> misfit(const char* where, const LanguageModel& model) const;
  // ArgumentError in the name of `where` unless `model` can go on from this.
  void check(const char* where, const LanguageModel& model) const;
  // A saved generation, loaded from `path` onto the host; FormatError in the name of `where` unless
  // it is what was written, whichever model wrote it.
  static Content read(const char* where, const std::string& path, SavedState saved);
};

}  // namespace mamba
