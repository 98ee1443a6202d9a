// A file of a cache, sealed again after the damage and named after what it says it is.
#include <cinttypes>
#include <cstdio>

#include <mamba/generator.hpp>
#include <mamba/state_file.hpp>

#include "fuzz.hpp"
#include "host/files/content_hash.hpp"
#include "host/generate/known_prefix.hpp"

namespace {

// Those that a file of before holds; none of one with a note.
std::vector<std::int32_t> ids_of(const mamba::SavedState& saved) {
  const auto said = saved.extras.find("prefix.ids");
  if (saved.metadata.notes.count("prefix") != 0 || said == saved.extras.end() ||
      said->second.dtype() != mamba::DType::i32) {
    return {};
  }
  const auto* first = said->second.data<std::int32_t>();
  return {first, first + said->second.count()};
}

mamba::PrefixKey key_of(const mamba::SavedState& saved, const std::vector<std::int32_t>& ids) {
  if (!ids.empty()) return mamba::keys_of(ids, {static_cast<std::int64_t>(ids.size())}).front();
  mamba::PrefixKey key{1, {0, 0}};
  const auto note = saved.metadata.notes.find("prefix");
  if (note != saved.metadata.notes.end()) {  // length and hash
    std::sscanf(note->second.c_str(), "%18" SCNd64 "-%16" SCNx64 "%16" SCNx64, &key.length,
                &key.hash.high64, &key.hash.low64);
  }
  return key;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::LanguageModel model = mamba::LanguageModel::load(fuzz::golden_folder("one"));
  static const fuzz::MemoryFolder folder;
  static const mamba::PrefixFiles files(model, folder.path());
  fuzz::accepted([&] {
    mamba::SavedState saved = mamba::load_state(mamba::ByteView(data, size));
    saved.metadata.fingerprint = model.fingerprint();
    mamba::StateExtras extras;
    for (const auto& [name, tensor] : saved.extras) extras.emplace(name, tensor);
    mamba::seal(saved.state, saved.metadata, extras);
    const std::vector<std::int32_t> ids = ids_of(saved);
    const mamba::PrefixKey key = key_of(saved, ids);
    mamba::save(files.path(key), saved.state, saved.metadata, extras);
    fuzz::accepted([&] {
      const auto prefix = files.read(key);
      fuzz::expect(prefix != nullptr && prefix->logits.count() == model.config().vocab_size);
      if (!ids.empty()) fuzz::expect(prefix->begins(ids, key.length));
    });
    files.remove(key);
  });
  return 0;
}
