// The beginning of a prompt and what a model remembers after it, in memory and in a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/state.hpp>

#include "host/hash.hpp"

namespace mamba {

struct PrefixKey {
  std::int64_t length = 0;
  XXH128_hash_t hash{0, 0};
  friend bool operator<(const PrefixKey& a, const PrefixKey& b) {
    if (a.length != b.length) return a.length < b.length;
    if (a.hash.high64 != b.hash.high64) return a.hash.high64 < b.hash.high64;
    return a.hash.low64 < b.hash.low64;
  }
};

// Keys of the beginnings of `ids` with the given lengths, which ascend and are at most its size.
std::vector<PrefixKey> keys_of(const std::vector<std::int32_t>& ids,
                               const std::vector<std::int64_t>& lengths);

struct KnownPrefix {
  std::vector<std::int32_t> ids;
  StackState state;  // of one row
  Tensor logits;     // [1, vocab_size] f32
  std::int64_t bytes() const;
};

// Files of prefixes of one model in one dtype. Their names say what they are; what is in them is
// believed only after its hash was checked.
class PrefixFiles {
 public:
  PrefixFiles(const LanguageModel& model, std::string folder);

  struct Found {
    PrefixKey key;
    std::int64_t bytes;
  };
  std::vector<Found> list() const;  // the one that was not used for longest first

  std::string path(const PrefixKey& key) const;
  // Written whole or not at all; returns its bytes. What the system refuses is an Error.
  std::int64_t write(const PrefixKey& key, const KnownPrefix& prefix) const;
  // nullptr if there is no such file (any more); FormatError if it is damaged.
  std::shared_ptr<const KnownPrefix> read(const PrefixKey& key) const;
  void remove(const PrefixKey& key) const;

 private:
  const LanguageModel& model_;
  std::string folder_;
  std::string fingerprint_;
};

}  // namespace mamba
