#include "host/files/content_hash.hpp"

#include <fmt/ranges.h>

#include <mamba/error.hpp>

#include "host/core/hash.hpp"

namespace mamba {
namespace {

constexpr const char* note = "hash";

// With everything that says how its bytes are to be read.
void add(Hash& hash, const std::string& name, const ConstTensorView& view) {
  hash.add(name + " " + name_of(view.dtype()) + " " + view.shape().to_string());
  hash.add(view.data(), view.count() * size_of(view.dtype()));
}

// `extras`: of name and tensor or view.
template <class Extras>
std::string hash_of(const StackState& state, const StateMetadata& metadata, const Extras& extras) {
  Hash hash;
  for (const MambaState& layer : state.layers) {
    layer.each([&](const char* name, const Tensor& tensor) { add(hash, name, tensor); });
  }
  for (const auto& [name, tensor] : extras) add(hash, name, tensor);
  hash.add(metadata.fingerprint);
  hash.add(fmt::format("{}", fmt::join(metadata.tokens_seen, " ")));
  for (const auto& [key, value] : metadata.notes) {
    if (key == note) continue;
    hash.add(key);
    hash.add(value);
  }
  return hash.text();
}

}  // namespace

void seal(const StackState& state, StateMetadata& metadata, const StateExtras& extras) {
  metadata.notes[note] = hash_of(state, metadata, extras);
}

void check_seal(const char* where, const std::string& path, const SavedState& saved) {
  const auto kept = saved.metadata.notes.find(note);
  if (kept == saved.metadata.notes.end()) {
    throw FormatError(where, path, "a file with a hash of its contents",
                      "one without, as older versions wrote it");
  }
  if (kept->second != hash_of(saved.state, saved.metadata, saved.extras)) {
    throw FormatError(where, path, "the contents that were written", "others");
  }
}

}  // namespace mamba
