// The beginning of a prompt and what a model remembers after it, in memory and in a file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <mamba/language_model.hpp>
#include <mamba/state.hpp>

#include "host/core/hash.hpp"

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

// The ids themselves are not kept, which would be all of them with every piece of a long prompt:
// the prompt in which the prefix is looked for has them. Beside the hash in the key there is one
// whose seed nobody knows beforehand, so that no text can be made that is taken for another.
struct KnownPrefix {
  std::uint64_t salt = 0;
  XXH128_hash_t proof{0, 0};  // of the ids, seeded with `salt`
  StackState state;           // of one row
  Tensor logits;              // [1, vocab_size] f32

  void prove(const std::int32_t* ids, std::int64_t length);  // with a salt of its own
  bool begins(const std::vector<std::int32_t>& ids, std::int64_t length) const;
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
    bool proven;  // somebody has made use of it
  };
  std::vector<Found> list() const;  // least recently used first

  std::string path(const PrefixKey& key) const;
  // Written whole or not at all; returns its bytes. What the system refuses is an Error. `parent`,
  // if not nullptr, is a beginning of it: its file counts as used after this one's.
  std::int64_t write(const PrefixKey& key, const KnownPrefix& prefix,
                     const PrefixKey* parent) const;
  // nullptr if there is no such file (any more). A damaged one is a FormatError and gone; what the
  // system refuses is an Error.
  std::shared_ptr<const KnownPrefix> read(const PrefixKey& key) const;
  // As used now, the first of them last of all; and the last as what somebody has made use of.
  // Beginnings of one text, which ascend.
  void mark_used(const std::vector<PrefixKey>& keys) const;
  void remove(const PrefixKey& key) const;

 private:
  std::shared_ptr<const KnownPrefix> read_whole(const std::string& file,
                                                const PrefixKey& key) const;
  const LanguageModel& model_;
  std::string folder_;
  std::string fingerprint_;
};

}  // namespace mamba
