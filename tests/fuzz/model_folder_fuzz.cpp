// A model's folder: config.json, index and tensors in one input, with a NUL between them.
#include <mamba/generator.hpp>

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::MemoryFolder folder;
  const std::string all = fuzz::text_of(data, size);
  const std::size_t first = std::min(all.find('\0'), all.size());
  const std::size_t second = std::min(all.find('\0', first + 1), all.size());
  const std::string index = all.substr(std::min(first + 1, all.size()), second - first - 1);
  fuzz::write_file(folder.file("config.json"), all.substr(0, first));
  const std::string tensors = index.empty() ? "model.safetensors" : "a.safetensors";
  fuzz::write_file(folder.file(tensors), all.substr(std::min(second + 1, all.size())));
  if (!index.empty()) fuzz::write_file(folder.file("model.safetensors.index.json"), index);
  fuzz::accepted([&] {
    const mamba::LanguageModel model = mamba::LanguageModel::load(folder.path());
    const std::string fingerprint = model.fingerprint();
    fuzz::expect(fingerprint.size() == 32);
  });
  std::filesystem::remove(folder.file(tensors));
  std::filesystem::remove(folder.file("model.safetensors.index.json"));
  return 0;
}
