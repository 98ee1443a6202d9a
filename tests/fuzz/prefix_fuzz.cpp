// A file of a cache, sealed again after the damage and named after what it says it is.
#include <mamba/generator.hpp>
#include <mamba/state_file.hpp>

#include "fuzz.hpp"
#include "host/content_hash.hpp"
#include "host/known_prefix.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::LanguageModel model = mamba::LanguageModel::load(fuzz::golden_folder("one"));
  static const fuzz::MemoryFolder folder;
  static const mamba::PrefixFiles files(model, folder.path());
  static fuzz::MemoryFile file;
  file.write(fuzz::text_of(data, size));
  fuzz::accepted([&] {
    mamba::SavedState saved = mamba::load_state(file.path());
    saved.metadata.fingerprint = model.fingerprint();
    mamba::StateExtras extras;
    for (const auto& [name, tensor] : saved.extras) extras.emplace(name, tensor);
    mamba::seal(saved.state, saved.metadata, extras);
    std::vector<std::int32_t> ids{1};
    const auto said = saved.extras.find("prefix.ids");
    if (said != saved.extras.end() && said->second.dtype() == mamba::DType::i32) {
      const auto* first = said->second.data<std::int32_t>();
      ids.assign(first, first + said->second.count());
    }
    const mamba::PrefixKey key =
        mamba::keys_of(ids, {static_cast<std::int64_t>(ids.size())}).front();
    mamba::save(files.path(key), saved.state, saved.metadata, extras);
    fuzz::accepted([&] {
      const auto prefix = files.read(key);
      fuzz::expect(prefix != nullptr && prefix->ids == ids);
    });
    files.remove(key);
  });
  return 0;
}
