// A training checkpoint, hashed again after the damage. What is refused has changed nothing.
#include <mamba/checkpoint.hpp>
#include <mamba/loss.hpp>
#include <mamba/safetensors.hpp>

#include "fuzz.hpp"
#include "host/core/hash.hpp"

namespace {

struct Run {
  mamba::LanguageModel model = mamba::LanguageModel::load(fuzz::golden_folder("one"));
  mamba::LanguageModelWeights gradients = mamba::zero_gradients(model.config());
  mamba::AdamW optimizer{mamba::parameters(model, gradients)};
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Run run;
  static const fuzz::MemoryFolder folder;
  fuzz::accepted([&] {
    const mamba::SafetensorsFile said(mamba::ByteView(data, size));
    mamba::Hash hash;
    std::vector<std::pair<std::string, mamba::Tensor>> tensors;
    run.optimizer.each_tensor([&](const std::string& name, mamba::TensorView like) {
      if (said.find(name) == nullptr) return;
      tensors.emplace_back(name, said.read(said.entry(name), like.shape(), like.dtype()));
      hash.add(name);
      hash.add(tensors.back().second.view().data(), tensors.back().second.bytes());
    });
    std::vector<mamba::SafetensorsItem> items;
    for (const auto& [name, tensor] : tensors) items.push_back({name, tensor});
    std::map<std::string, std::string> metadata = said.metadata();
    metadata["hash"] = hash.text();
    mamba::save_safetensors(folder.file("training"), items, metadata);
    const std::int64_t steps = run.optimizer.steps();
    const bool taken = fuzz::accepted(
        [&] { mamba::load_training(folder.file("training"), run.optimizer, nullptr); });
    fuzz::expect(taken || run.optimizer.steps() == steps);
  });
  return 0;
}
