// A saved generation, sealed again after the damage, so that it gets through the hash.
#include <mamba/generator.hpp>
#include <mamba/state_file.hpp>

#include "fuzz.hpp"
#include "host/files/content_hash.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const mamba::LanguageModel model = mamba::LanguageModel::load(fuzz::golden_folder("one"));
  static mamba::Stream stream(mamba::Device::cpu(), 1);
  static mamba::GeneratorPool pool(model, 1, stream);
  fuzz::accepted([&] {
    mamba::SavedState saved = mamba::load_state(mamba::ByteView(data, size));
    saved.metadata.fingerprint = model.fingerprint();
    mamba::StateExtras extras;
    for (const auto& [name, tensor] : saved.extras) extras.emplace(name, tensor);
    mamba::seal(saved.state, saved.metadata, extras);
    const mamba::Bytes bytes = mamba::save(saved.state, saved.metadata, extras);
    mamba::Generator generator = pool.make(mamba::GeneratorSnapshot::load(bytes));
    generator.next();
    fuzz::expect(generator.tokens_seen() >= 0);
  });
  fuzz::expect(pool.size() == 0);
  return 0;
}
