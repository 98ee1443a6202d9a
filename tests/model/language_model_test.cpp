// Loading, refusing, reading long prompts in pieces, and computing no logits but those asked for.
#include <mamba/language_model.hpp>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <type_traits>

#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

namespace fs = std::filesystem;
using testing::bits;
using testing::expect_error;
using testing::golden_folder;
using testing::Random;
using testing::relative_error;
using testing::TemporaryFolder;
using testing::values;

// A call that does not say which logits it wants does not compile.
static_assert(!std::is_convertible_v<TensorView, Logits>);
static_assert(!std::is_convertible_v<Tensor&, Logits>);
static_assert(!std::is_constructible_v<Logits, TensorView>);
static_assert(!std::is_default_constructible_v<Logits>);

LanguageModelConfig small_config() {
  LanguageModelConfig config;
  config.layer.d_model = 16;
  config.layer.d_state = 8;
  config.n_layer = 2;
  config.vocab_size = 37;
  return config;
}

Tensor random_ids(std::int64_t batch, std::int64_t time, std::int64_t vocab) {
  Random random(5);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(batch * time));
  for (auto& id : ids) id = static_cast<std::int32_t>(random.integer(0, vocab - 1));
  return Tensor::from(ids, {batch, time});
}

TEST_EACH(LanguageModel, PiecesOfAnySizeGiveTheSameLogitsAndStates, Device device) {
  const LanguageModel model = LanguageModel::random(small_config(), 3, DType::f32, device);
  const Tensor ids = random_ids(2, 40, 37).to(device);
  Stream& stream = default_stream(device);
  const auto run = [&](std::int64_t piece_tokens, StackState& state) {
    Tensor logits({2, 40, 37}, DType::f32, device);
    LanguageModelOptions options;
    options.piece_tokens = piece_tokens;
    model.forward(ids, state, Logits::all(logits), stream, options);
    stream.synchronize();
    return logits;
  };
  StackState whole_state = model.make_state(2);
  const Tensor whole = run(2048, whole_state);
  for (std::int64_t piece : {1, 2, 6, 26, 79, 80}) {
    StackState state = model.make_state(2);
    EXPECT_LE(relative_error(values(run(piece, state)), values(whole)), 5e-6) << piece;
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_LE(relative_error(values(state.layers[i].ssm), values(whole_state.layers[i].ssm)),
                5e-6);
    }
  }
}

TEST_EACH(LanguageModel, ComputesTheLogitsAskedForAndNoOthers, Device device) {
  const LanguageModel model = LanguageModel::random(small_config(), 3, DType::f32, device);
  const Tensor ids = random_ids(3, 9, 37).to(device);
  Stream& stream = default_stream(device);
  LanguageModelOptions options;
  options.piece_tokens = 12;  // several pieces: only the last one's last position counts
  StackState state = model.make_state(3);
  Tensor all({3, 9, 37}, DType::f32, device);
  model.forward(ids, state, Logits::all(all), stream, options);
  testing::Guarded last({3, 37}, DType::f32, device);
  StackState state_last = model.make_state(3);
  model.forward(ids, state_last, Logits::last(last.view()), stream, options);
  StackState state_none = model.make_state(3);
  model.forward(ids, state_none, Logits::none(), stream, options);
  stream.synchronize();
  EXPECT_LE(relative_error(values(last.view().reshape({3, 1, 37})), values(all.view().steps(8, 1))),
            5e-6);
  last.expect_untouched("last logits");
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(bits(state.layers[i].ssm), bits(state_last.layers[i].ssm));
    EXPECT_EQ(bits(state.layers[i].ssm), bits(state_none.layers[i].ssm));
  }
}

TEST_EACH(LanguageModel, ResetsInsideAPromptAreSeparateTexts, Device device) {
  const LanguageModel model = LanguageModel::random(small_config(), 3, DType::f32, device);
  const Tensor ids = random_ids(1, 20, 37).to(device);
  std::vector<std::int32_t> flags(20, 0);
  flags[13] = 1;
  const Tensor reset = Tensor::from(flags, {1, 20}).to(device);
  Stream& stream = default_stream(device);
  LanguageModelOptions options;
  options.reset = reset;
  options.piece_tokens = 6;
  StackState state = model.make_state(1);
  Tensor logits({1, 37}, DType::f32, device);
  model.forward(ids, state, Logits::last(logits), stream, options);
  StackState fresh = model.make_state(1);
  Tensor expected({1, 37}, DType::f32, device);
  model.forward(ids.view().columns(13, 7), fresh, Logits::last(expected), stream);
  EXPECT_LE(relative_error(values(logits), values(expected)), 5e-6) << device.name();
}

TEST(LanguageModel, BadCallsAreNamedAndTouchNothing) {
  const LanguageModel model = LanguageModel::random(small_config(), 3);
  Stream& stream = default_stream();
  StackState state = model.make_state(1);
  model.forward(random_ids(1, 5, 37), state, Logits::none(), stream);
  const StackState before = state.clone();
  const auto forward = [&](const Tensor& ids, const Logits& logits, std::int64_t piece = 2048) {
    return [&, logits, piece] {
      LanguageModelOptions options;
      options.piece_tokens = piece;
      model.forward(ids, state, logits, stream, options);
    };
  };
  const Tensor good = random_ids(1, 9, 37);
  Tensor bad = good.clone();
  bad.data<std::int32_t>()[8] = 37;  // in the last of three pieces
  expect_error<ArgumentError>("LanguageModel::forward: ids: expected 0 to 36, got 37",
                              forward(bad, Logits::none(), 3));
  bad.data<std::int32_t>()[8] = -1;
  expect_error<ArgumentError>("LanguageModel::forward: ids: expected 0 to 36, got -1",
                              forward(bad, Logits::none(), 3));
  Tensor logits({1, 9, 40}, DType::f32);
  expect_error<ArgumentError>(
      "LanguageModel::forward: Logits::all: expected [1, 9, 37], got [1, 9, 40]",
      forward(good, Logits::all(logits)));
  Tensor last({1, 37}, DType::f32);
  const Tensor none = random_ids(1, 0, 37);
  expect_error<ArgumentError>(
      "LanguageModel::forward: Logits::last: expected a time of at least 1, got 0",
      forward(none, Logits::last(last)));
  const Tensor two = random_ids(2, 3, 37);
  expect_error<ArgumentError>(
      "LanguageModel::forward: state.conv: expected [2, 32, 3], got [1, 32, 3]",
      forward(two, Logits::none()));
  state.layers.pop_back();
  expect_error<ArgumentError>("LanguageModel::forward: state: expected 2 layers, got 1",
                              forward(good, Logits::none()));
  EXPECT_EQ(bits(state.layers[0].ssm), bits(before.layers[0].ssm));
}

TEST(LanguageModel, FingerprintsTellModelsApartAndSurviveDtypes) {
  const std::string folder = golden_folder("base");
  const std::string fingerprint = LanguageModel::load(folder).fingerprint();
  EXPECT_EQ(fingerprint.size(), 32u);
  EXPECT_EQ(LanguageModel::load(folder, DType::bf16).fingerprint(), fingerprint);
  EXPECT_NE(LanguageModel::load(golden_folder("sharded_bf16")).fingerprint(), fingerprint);
  const LanguageModel a = LanguageModel::random(small_config(), 1);
  EXPECT_EQ(a.fingerprint(), LanguageModel::random(small_config(), 1).fingerprint());
  EXPECT_NE(a.fingerprint(), LanguageModel::random(small_config(), 2).fingerprint());
  LanguageModelConfig epsilon = small_config();
  epsilon.norm_epsilon = 1e-6f;
  EXPECT_NE(a.fingerprint(), LanguageModel::random(epsilon, 1).fingerprint());
  TemporaryFolder saved;
  a.save(saved.file("a"));
  EXPECT_EQ(LanguageModel::load(saved.file("a")).fingerprint(), a.fingerprint());
}

TEST(LanguageModel, LoadingSaysHowFarItIs) {
  for (const std::string golden : {"base", "sharded_bf16"}) {
    const std::string folder = golden_folder(golden);
    std::int64_t in_files = 0;
    std::size_t tensors = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      // golden.safetensors has the expected results.
      if (entry.path().filename().string().rfind("model", 0) != 0) continue;
      if (entry.path().extension() != ".safetensors") continue;
      const SafetensorsFile file(entry.path().string());
      for (const SafetensorsEntry& tensor : file.entries()) {
        in_files += tensor.bytes;
        ++tensors;
      }
    }
    std::vector<std::int64_t> calls;
    const LoadProgress note = [&](std::int64_t read, std::int64_t bytes) {
      EXPECT_EQ(bytes, in_files);
      calls.push_back(read);
    };
    LanguageModel::load(folder, DType::f32, Device::cpu(), note);  // bf16 is converted
    EXPECT_EQ(calls.size(), tensors + 1);
    EXPECT_EQ(calls.front(), 0);
    EXPECT_EQ(calls.back(), in_files);
    EXPECT_EQ(std::adjacent_find(calls.begin(), calls.end(), std::greater_equal<>()), calls.end());
  }
}

TEST(LanguageModel, LoadingEndsWithWhatItsObserverThrows) {
  struct Cancelled {};
  int calls = 0;
  const LoadProgress cancel = [&](std::int64_t read, std::int64_t) {
    ++calls;
    if (read > 0) throw Cancelled();
  };
  const std::string folder = golden_folder("base");
  EXPECT_THROW(LanguageModel::load(folder, {}, Device::cpu(), cancel), Cancelled);
  EXPECT_EQ(calls, 2);
}

TEST(LanguageModel, KeepsConfigKeysItDoesNotKnow) {
  TemporaryFolder folder;
  fs::copy(golden_folder("base"), folder.file("model"));
  nlohmann::json json;
  std::ifstream(folder.file("model/config.json")) >> json;
  json["a_key_of_tomorrow"] = {{"nested", 3}};
  std::ofstream(folder.file("model/config.json")) << json;
  LanguageModel::load(folder.file("model")).save(folder.file("again"));
  nlohmann::json again;
  std::ifstream(folder.file("again/config.json")) >> again;
  EXPECT_EQ(again["a_key_of_tomorrow"], json["a_key_of_tomorrow"]);
  EXPECT_EQ(again["layer_norm_epsilon"], json["layer_norm_epsilon"]);
}

// ---- folders that lie ---------------------------------------------------------------------------

class BadFolder : public ::testing::Test {
 protected:
  BadFolder() { fs::copy(golden_folder("base"), folder_.file("model")); }
  std::string model() const { return folder_.file("model"); }
  std::string file(const std::string& name) const { return folder_.file("model/" + name); }

  // Rewrites model.safetensors with `change` applied to its list of tensors.
  template <class Change>
  void rewrite(Change change) {
    std::vector<std::pair<std::string, Tensor>> tensors;
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
  void expect_format_error(const std::string& part) {
    try {
      LanguageModel::load(model());
      ADD_FAILURE() << "expected a FormatError with " << part;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }

  TemporaryFolder folder_;
};

using Tensors = std::vector<std::pair<std::string, Tensor>>;

TEST_F(BadFolder, MissingTensor) {
  rewrite([](Tensors& tensors) {
    tensors.erase(std::find_if(tensors.begin(), tensors.end(), [](const auto& t) {
      return t.first == "backbone.layers.1.mixer.D";
    }));
  });
  expect_format_error("expected backbone.layers.1.mixer.D, got no tensor of that name");
}

TEST_F(BadFolder, SurplusTensor) {
  rewrite([](Tensors& tensors) {
    tensors.emplace_back("backbone.layers.0.mixer.in_proj.bias", Tensor::zeros({128}, DType::f32));
  });
  expect_format_error("backbone.layers.0.mixer.in_proj.bias");
}

TEST_F(BadFolder, WrongShape) {
  rewrite([](Tensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "backbone.layers.0.mixer.A_log") tensor = Tensor::zeros({64, 15}, DType::f32);
    }
  });
  expect_format_error("backbone.layers.0.mixer.A_log");
}

TEST_F(BadFolder, WrongDtype) {
  rewrite([](Tensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "backbone.norm_f.weight") tensor = Tensor::zeros({32}, DType::i32);
    }
  });
  expect_format_error("backbone.norm_f.weight");
}

TEST_F(BadFolder, NaNInTheWeightsIsAllowed) {
  rewrite([](Tensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "backbone.layers.0.mixer.D") tensor.data<float>()[3] = NAN;
    }
  });
  const LanguageModel loaded = LanguageModel::load(model());
  EXPECT_TRUE(std::isnan(loaded.stack().layer(0).weights().D.data<float>()[3]));
}

TEST_F(BadFolder, OnlyPytorchNamesTheScript) {
  fs::rename(file("model.safetensors"), file("pytorch_model.bin"));
  expect_format_error("only pytorch_model.bin; scripts/bin_to_safetensors.py converts it");
}

TEST_F(BadFolder, NothingThere) {
  fs::remove(file("model.safetensors"));
  expect_format_error("expected model.safetensors or its index, got neither");
  fs::remove(file("config.json"));
  expect_format_error("expected config.json, got none");
  EXPECT_THROW(LanguageModel::load(folder_.file("nowhere")), Error);
}

TEST_F(BadFolder, ShardsThatAreNotWhereTheIndexSays) {
  fs::remove_all(model());
  fs::copy(golden_folder("sharded_bf16"), model());
  nlohmann::json good;
  std::ifstream(file("model.safetensors.index.json")) >> good;
  const auto with_shard = [&](const std::string& shard) {
    nlohmann::json json = good;
    json["weight_map"]["backbone.norm_f.weight"] = shard;
    std::ofstream(file("model.safetensors.index.json")) << json;
  };
  with_shard("../model/model-00001-of-00003.safetensors");
  expect_format_error("expected shards in the same folder");
  with_shard(good["weight_map"]["backbone.embeddings.weight"]);
  expect_format_error("backbone.norm_f.weight in model-00001-of-00003.safetensors");
  with_shard("absent.safetensors");
  EXPECT_THROW(LanguageModel::load(model()), Error);
}

TEST_F(BadFolder, AnIndexThatIsNone) {
  fs::remove(file("model.safetensors"));
  const std::pair<const char*, const char*> cases[] = {
      {"{", "an index with a weight_map of names: expected valid JSON, got an error at byte 2"},
      {"[]", "expected an index with a weight_map of names, got a list"},
      {"{}", "expected an index with a weight_map of names, got an object"},
      {"{\"weight_map\": 3}",
       "expected an index with a weight_map of names, got a weight_map that is 3"},
      {"{\"weight_map\": {\"a\": 3}}",
       "expected an index with a weight_map of names, got 3 for \"a\""},
      {"{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}",
       "\"a\": expected a key given once, got it twice"},
  };
  for (const auto& [text, error] : cases) {
    std::ofstream(file("model.safetensors.index.json")) << text;
    expect_format_error(error);
  }
}

}  // namespace
}  // namespace mamba
