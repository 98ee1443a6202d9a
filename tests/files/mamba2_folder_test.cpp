// Folders of Mamba-2: told from those of Mamba-1 by what they say, or else by their tensors.
#include <filesystem>
#include <nlohmann/json.hpp>

#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "files.hpp"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;
using testing::golden_folder;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

class Mamba2Folder : public ::testing::Test {
 protected:
  // The tensors of one golden and the config of another, changed.
  template <class Change>
  void make(const std::string& tensors, const std::string& config, Change change) {
    fs::remove_all(model());
    fs::copy(golden_folder(tensors), model());
    json text = json::parse(read_file(golden_folder(config) + "/config.json"));
    change(text);
    write_file(model() + "/config.json", text.dump());
  }
  std::string model() const { return folder_.file("model"); }
  LanguageModel load() const { return LanguageModel::load(model()); }

 private:
  TemporaryFolder folder_;
};

TEST_F(Mamba2Folder, AConfigThatIsSilentTakesTheTensorsWord) {
  LanguageModelConfig config;
  config.layer.d_model = 32;
  config.n_layer = 1;
  config.vocab_size = 16;
  for (const MixerKind mixer : {MixerKind::mamba1, MixerKind::mamba2}) {
    config.layer.mixer = mixer;
    const LanguageModel model = LanguageModel::random(config, 1);
    model.save(this->model());
    for (const char* options : {R"("ssm_cfg": {}, )", ""}) {
      write_file(this->model() + "/config.json",
                 std::string("{") + options + R"("d_model": 32, "n_layer": 1, "vocab_size": 16})");
      const LanguageModel silent = load();
      EXPECT_EQ(silent.config().layer.mixer, mixer);
      EXPECT_EQ(silent.config().layer.head_dim, mixer == MixerKind::mamba2 ? 64 : 0);
      EXPECT_EQ(silent.fingerprint(),
                LanguageModel(config, random_model_weights(config, DType::f32, 1)).fingerprint());
    }
  }
}

TEST_F(Mamba2Folder, FilesOfOneReadAsTheOtherAreRefused) {
  const auto same = [](json&) {};
  const auto expect_refused = [&](const std::string& text) {
    expect_error<FormatError>(
        "LanguageModel::load: " + model() + "/config.json: expected layers of " + text,
        [&] { load(); });
  };
  make("mamba2_one", "base", same);
  expect_refused("Mamba2, as the tensors are, got of Mamba1");
  make("base", "mamba2_one", same);
  expect_refused("Mamba1, as the tensors are, got of Mamba2");
  make("mamba2_original", "mamba2_original", [](json& c) { c["ssm_cfg"] = {{"layer", "Mamba1"}}; });
  expect_refused("Mamba2, as the tensors are, got of Mamba1");
}

TEST_F(Mamba2Folder, SizesThatTheTensorsDoNotHaveAreNamed) {
  make("mamba2_groups", "mamba2_groups", [](json& c) { c["n_groups"] = 1; });
  EXPECT_THROW(load(), FormatError);
  make("mamba2_groups", "mamba2_groups", [](json& c) { c["num_heads"] = 5; });
  expect_error<FormatError>(
      model() + "/config.json: num_heads: expected expand hidden_size, 48, over head_dim, 8, got 5",
      [&] { load(); });
}

// What was read in another form is saved in Hugging Face's, in one file.
TEST_F(Mamba2Folder, IsSavedAsTransformersReadsIt) {
  for (const char* name : {"mamba2_codestral", "mamba2_original", "mamba2_limits"}) {
    const LanguageModel first = LanguageModel::load(golden_folder(name));
    fs::remove_all(model());
    first.save(model());
    const LanguageModel again = load();
    EXPECT_EQ(again.fingerprint(), first.fingerprint()) << name;
    const SafetensorsFile file(model() + "/model.safetensors");
    const SafetensorsEntry& conv = file.entry("backbone.layers.0.mixer.conv1d.weight");
    EXPECT_EQ(conv.shape.size(), 3u);
    EXPECT_EQ(conv.shape.at(1), 1);
    EXPECT_EQ(file.find("lm_head.weight") != nullptr, !first.config().tie_embeddings);
  }
}

}  // namespace
}  // namespace mamba
