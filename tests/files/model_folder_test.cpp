// The folders that people have: what is read from them, and what is said of those that are not
// read.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "files.hpp"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using testing::bits;
using testing::golden_folder;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

using Ids = std::vector<std::int32_t>;
using Tensors = std::vector<std::pair<std::string, Tensor>>;

const char* const lfs_pointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 517133\n";

class ModelFolder : public ::testing::Test {
 protected:
  void take(const std::string& golden) {
    fs::remove_all(model());
    fs::copy(golden_folder(golden), model());
  }
  std::string model() const { return folder_.file("model"); }
  std::string file(const std::string& name) const { return folder_.file("model/" + name); }
  LanguageModel load() const { return LanguageModel::load(model()); }
  Ids end() const { return load().config().eos_token_ids; }

  // Rewrites model.safetensors with `change` applied to its list of tensors.
  template <class Change>
  void rewrite(Change change) {
    Tensors tensors;
    {
      const SafetensorsFile original(file("model.safetensors"));
      for (const SafetensorsEntry& entry : original.entries()) {
        tensors.emplace_back(entry.name, original.read(entry));
      }
    }
    change(tensors);
    std::vector<SafetensorsItem> items;
    for (auto& [name, tensor] : tensors) items.push_back({name, tensor});
    save_safetensors(file("model.safetensors"), items);
  }

  // Adds a tensor of any dtype behind all others; `header` is what the file says of it, without its
  // place.
  void append(const std::string& name, const std::string& header, std::size_t bytes) {
    std::string whole = read_file(file("model.safetensors"));
    std::uint64_t length;
    std::memcpy(&length, whole.data(), sizeof length);
    auto json = nlohmann::json::parse(whole.substr(8, length));
    const std::size_t end = whole.size() - 8 - length;
    json[name] = nlohmann::json::parse(header);
    json[name]["data_offsets"] = {end, end + bytes};
    const std::string text = json.dump();
    const std::uint64_t size = text.size();
    const std::string field(reinterpret_cast<const char*>(&size), sizeof size);
    write_file(file("model.safetensors"),
               field + text + whole.substr(8 + length) + std::string(bytes, '\x11'));
  }

  // A null pointer removes the key.
  void set_config(const std::string& key, const char* value) {
    auto json = nlohmann::json::parse(read_file(file("config.json")));
    json.erase(key);
    if (value != nullptr) json[key] = nlohmann::json::parse(value);
    write_file(file("config.json"), json.dump());
  }

  void expect_error(const std::string& part) {
    try {
      load();
      ADD_FAILURE() << "expected an Error with " << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  TemporaryFolder folder_;
};

Tensor& find(Tensors& tensors, const std::string& name) {
  for (auto& [one, tensor] : tensors) {
    if (one == name) return tensor;
  }
  throw std::logic_error(name);
}

// ---- names --------------------------------------------------------------------------------------

TEST_F(ModelFolder, NamesWithoutBackboneAndBehindModel) {
  for (const char* golden : {"base", "falcon"}) {
    const std::string expected = LanguageModel::load(golden_folder(golden)).fingerprint();
    for (const std::string prefix : {"", "model.", "model.backbone."}) {
      take(golden);
      rewrite([&](Tensors& tensors) {
        for (auto& [name, tensor] : tensors) {
          const bool head = name == "lm_head.weight";
          if (head && prefix == "model.") name = "model.lm_head.weight";
          if (!head) name = prefix + name.substr(std::string("backbone.").size());
        }
      });
      EXPECT_EQ(load().fingerprint(), expected) << golden << " " << prefix;
    }
  }
}

TEST_F(ModelFolder, OneTensorUnderTwoNamesIsRefused) {
  take("base");
  rewrite([&](Tensors& tensors) {
    tensors.emplace_back("model.norm_f.weight", find(tensors, "backbone.norm_f.weight").clone());
  });
  expect_error("one name for every tensor, got ");
}

TEST_F(ModelFolder, NamesOfOtherModelsAreNotTaken) {
  take("base");
  rewrite([](Tensors& tensors) {
    tensors.emplace_back("transformer.norm_f.weight", Tensor::zeros({32}, DType::f32));
  });
  expect_error("transformer.norm_f.weight: expected only tensors that the config has");
}

// ---- biases ------------------------------------------------------------------------------------

TEST_F(ModelFolder, BiasesOfWhichNothingIsSaidFollowFromTheFile) {
  for (const char* golden : {"base", "biased", "wide"}) {  // the convolution's; all; none
    take(golden);
    const LanguageModel said = load();
    set_config("use_bias", nullptr);
    set_config("use_conv_bias", nullptr);
    const LanguageModel silent = load();
    EXPECT_EQ(silent.config().layer.use_bias, said.config().layer.use_bias) << golden;
    EXPECT_EQ(silent.config().layer.use_conv_bias, said.config().layer.use_conv_bias) << golden;
    EXPECT_EQ(silent.fingerprint(), said.fingerprint()) << golden;
  }
}

// ---- the head -----------------------------------------------------------------------------------

TEST_F(ModelFolder, AHeadOfWhichNothingIsSaidFollowsFromTheFile) {
  take("falcon");
  const std::string untied = load().fingerprint();
  set_config("tie_word_embeddings", nullptr);
  EXPECT_EQ(load().fingerprint(), untied);
  rewrite([](Tensors& tensors) {
    find(tensors, "lm_head.weight") = find(tensors, "backbone.embeddings.weight").clone();
  });
  EXPECT_TRUE(load().config().tie_embeddings);
  rewrite([](Tensors& tensors) {
    tensors.erase(std::find_if(tensors.begin(), tensors.end(),
                               [](const auto& t) { return t.first == "lm_head.weight"; }));
  });
  EXPECT_TRUE(load().config().tie_embeddings);
  set_config("tie_word_embeddings", "false");
  expect_error("expected lm_head.weight, got no tensor of that name");
}

TEST_F(ModelFolder, ATiedHeadMustBeTheEmbedding) {
  take("falcon");
  set_config("tie_word_embeddings", "true");
  expect_error(
      "lm_head.weight: expected the embedding's values, as config.json ties them (the file's own "
      "are read with \"tie_word_embeddings\": false), got others");
  rewrite([](Tensors& tensors) {
    Tensor copy = find(tensors, "backbone.embeddings.weight").clone();
    find(tensors, "lm_head.weight") = copy.to(Device::cpu(), DType::bf16);
  });
  expect_error("lm_head.weight: expected the embedding's values");
  rewrite([](Tensors& tensors) {
    Tensor& embedding = find(tensors, "backbone.embeddings.weight");
    embedding = embedding.to(Device::cpu(), DType::bf16).to(Device::cpu(), DType::f32);
  });
  EXPECT_TRUE(load().config().tie_embeddings);  // the same numbers in another dtype
  rewrite([](Tensors& tensors) {
    find(tensors, "lm_head.weight") = Tensor::zeros({8, 8}, DType::f32);
  });
  expect_error("lm_head.weight: expected the embedding's values");
}

TEST_F(ModelFolder, AnOriginalConfigWithAnotherHeadIsUntied) {
  take("original");
  ASSERT_TRUE(load().config().tie_embeddings);  // the file has a copy
  rewrite([](Tensors& tensors) { find(tensors, "lm_head.weight").data<float>()[0] += 1; });
  EXPECT_FALSE(load().config().tie_embeddings);
  set_config("tie_embeddings", "true");
  expect_error("lm_head.weight: expected the embedding's values");
}

// ---- the end of a text --------------------------------------------------------------------------

TEST_F(ModelFolder, GenerationConfigSaysWhatEndsAText) {
  take("base");
  const auto with = [&](const std::string& text) {
    write_file(file("generation_config.json"), text);
    return end();
  };
  EXPECT_EQ(end(), (Ids{0}));
  EXPECT_EQ(with(R"({"eos_token_id": [0, 2]})"), (Ids{0, 2}));
  EXPECT_EQ(with(R"({"eos_token_id": 3, "top_p": Infinity})"), (Ids{3}));
  EXPECT_EQ(with(R"({"eos_token_id": null})"), (Ids{0}));
  EXPECT_EQ(with("{}"), (Ids{0}));
  const auto refused = [&](const std::string& text, const std::string& said) {
    write_file(file("generation_config.json"), text);
    expect_error(file("generation_config.json") + ": " + said);
  };
  refused("[]", "JSON: expected an object, got a list");
  refused(R"({"eos_token_id": "</s>"})",
          "eos_token_id: expected ids of 0 to 2147483647, got \"</s>\"");
  refused(lfs_pointer, "file: expected its contents, got a Git LFS pointer");
}

TEST_F(ModelFolder, WhereNothingIsSaidIdZeroEndsAText) {
  take("original");
  EXPECT_EQ(end(), (Ids{0}));
  set_config("eos_token_id", "null");
  EXPECT_EQ(end(), Ids{});
  take("base");
  set_config("eos_token_id", nullptr);
  EXPECT_EQ(end(), (Ids{0}));
}

TEST_F(ModelFolder, SavingKeepsTheIdsThatEndAText) {
  take("base");
  write_file(file("generation_config.json"), R"({"eos_token_id": [0, 2]})");
  load().save(folder_.file("alone"));
  EXPECT_EQ(LanguageModel::load(folder_.file("alone")).config().eos_token_ids, (Ids{0, 2}));
  load().save(model());
  EXPECT_EQ(end(), (Ids{0, 2}));
  EXPECT_EQ(read_file(file("config.json")).find("mamba_cpp"), std::string::npos);
  // Into the folder of a model that ends otherwise.
  LanguageModel::load(golden_folder("one")).save(model());
  EXPECT_EQ(end(), (Ids{0}));
  load().save(folder_.file("again"));
  EXPECT_EQ(read_file(folder_.file("again/config.json")).find("mamba_cpp"), std::string::npos);
}

// ---- dtypes -------------------------------------------------------------------------------------

TEST_F(ModelFolder, ADtypeThatIsNotReadStopsOnlyWhoNeedsIt) {
  struct Other {
    const char* dtype;
    const char* said;
    std::size_t bytes;  // of 32 elements
  };
  const Other others[] = {{"F8_E4M3", "F8_E4M3 (8-bit floats)", 32},
                          {"F8_E5M2", "F8_E5M2 (8-bit floats)", 32},
                          {"F8_E4M3FNUZ", "F8_E4M3FNUZ (8-bit floats)", 32},
                          {"F8_E5M2FNUZ", "F8_E5M2FNUZ (8-bit floats)", 32},
                          {"F8_E8M0", "F8_E8M0 (8-bit scales)", 32},
                          {"F6_E2M3", "F6_E2M3 (6-bit floats)", 24},
                          {"F6_E3M2", "F6_E3M2 (6-bit floats)", 24},
                          {"F4", "F4 (4-bit floats)", 16},
                          {"C64", "C64 (complex numbers of two 32-bit floats)", 256},
                          {"BOOL", "BOOL", 32},
                          {"U16", "U16", 64},
                          {"I64", "I64", 256}};
  for (const Other& other : others) {
    const std::string header = std::string("{\"dtype\":\"") + other.dtype + "\",\"shape\":[32]}";
    take("base");
    append("backbone.layers.0.mixer.scale", header, other.bytes);
    EXPECT_EQ(load().fingerprint(), LanguageModel::load(golden_folder("base")).fingerprint());
    const SafetensorsFile file_with(file("model.safetensors"));
    EXPECT_EQ(file_with.bytes(file_with.entry("backbone.layers.0.mixer.scale")).size(),
              other.bytes);
    take("base");
    append("backbone.layers.0.mixer.in_proj.bias", header, other.bytes);
    expect_error("backbone.layers.0.mixer.in_proj.bias: expected only tensors that the config has");
    take("base");
    rewrite([](Tensors& tensors) {
      tensors.erase(std::find_if(tensors.begin(), tensors.end(), [](const auto& t) {
        return t.first == "backbone.norm_f.weight";
      }));
    });
    append("backbone.norm_f.weight", header, other.bytes);
    expect_error(std::string("backbone.norm_f.weight: expected F32, BF16, F16 or F64, got ") +
                 other.said);
  }
}

TEST_F(ModelFolder, SizesOfElementsSmallerThanAByteAreChecked) {
  take("base");
  append("a", R"({"dtype":"F4","shape":[3]})", 2);
  expect_error("a: expected whole bytes, got F4 [3]");
  take("base");
  append("a", R"({"dtype":"F6_E2M3","shape":[4]})", 4);
  expect_error("a: expected 3 bytes for F6_E2M3 [4], got 4");
}

// ---- files that are not there -------------------------------------------------------------------

TEST_F(ModelFolder, GitLfsPointersAreCalledSo) {
  for (const char* name : {"config.json", "model.safetensors"}) {
    take("base");
    write_file(file(name), lfs_pointer);
    expect_error(
        file(name) +
        ": file: expected its contents, got a Git LFS pointer: the file was not downloaded");
  }
  for (const char* name : {"model.safetensors.index.json", "model-00002-of-00003.safetensors"}) {
    take("sharded_bf16");
    write_file(file(name), lfs_pointer);
    expect_error(file(name) + ": file: expected its contents, got a Git LFS pointer");
  }
}

TEST_F(ModelFolder, LinksToNothingAreCalledSo) {
  const auto cut = [&](const char* golden, const char* name) {
    take(golden);
    fs::remove(file(name));
    fs::create_symlink("../../blobs/4d7a", file(name));
    expect_error(
        file(name) +
        ": expected a file that can be read, got a link to ../../blobs/4d7a, where nothing is");
  };
  cut("base", "config.json");
  cut("base", "model.safetensors");
  cut("base", "generation_config.json");
  cut("sharded_bf16", "model.safetensors.index.json");
  cut("sharded_bf16", "model-00003-of-00003.safetensors");
}

TEST_F(ModelFolder, LinksToFilesAreRead) {
  take("base");
  fs::create_directory(folder_.file("blobs"));
  for (const char* name : {"config.json", "model.safetensors"}) {
    fs::rename(file(name), folder_.file("blobs/" + std::string(name)));
    fs::create_symlink("../blobs/" + std::string(name), file(name));
  }
  EXPECT_EQ(load().fingerprint(), LanguageModel::load(golden_folder("base")).fingerprint());
}

TEST_F(ModelFolder, ShardsAndIndexBelongTogether) {
  take("sharded_bf16");
  fs::remove(file("model-00002-of-00003.safetensors"));
  expect_error(file("model.safetensors.index.json") +
               ": expected every shard that it names beside it, got no "
               "model-00002-of-00003.safetensors");
  take("sharded_bf16");
  fs::remove(file("model.safetensors.index.json"));
  expect_error(
      "expected model.safetensors.index.json beside its shards, got the shards without it");
  write_file(file("model.safetensors.index.json"), "{\"weight_map\": {}}");
  expect_error("expected an index with a weight_map of names, got a weight_map of nothing");
}

}  // namespace
}  // namespace mamba
