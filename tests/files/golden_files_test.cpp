// Files of the first version, in tests/golden/files, are read as they were written.
#include "golden_files.hpp"

#include <algorithm>
#include <filesystem>

#include <mamba/checkpoint.hpp>
#include <mamba/generator.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/state_file.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::TemporaryFolder;

std::string golden_file(const std::string& name) { return testing::golden_folder("files/" + name); }

LanguageModel golden_model(Device device) {
  return LanguageModel::load(testing::golden_folder(golden_files::model_name), DType::f32, device);
}

void expect_same(const MambaState& state, const MambaState& expected) {
  EXPECT_EQ(state.conv.shape(), expected.conv.shape());
  EXPECT_EQ(state.conv.dtype(), expected.conv.dtype());
  EXPECT_EQ(bits(state.conv), bits(expected.conv));
  EXPECT_EQ(state.ssm.shape(), expected.ssm.shape());
  EXPECT_EQ(bits(state.ssm), bits(expected.ssm));
}

void expect_same(const StackState& state, const StackState& expected) {
  ASSERT_EQ(state.layers.size(), expected.layers.size());
  for (std::size_t i = 0; i < state.layers.size(); ++i) {
    expect_same(state.layers[i], expected.layers[i]);
  }
}

// FNV-1a of all bytes of a state, layer by layer.
std::uint64_t hash_of(const StackState& state) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const MambaState& layer : state.layers) {
    for (const Tensor* tensor : {&layer.conv, &layer.ssm}) {
      for (const unsigned char byte : bits(*tensor)) hash = (hash ^ byte) * 0x100000001b3;
    }
  }
  return hash;
}

std::vector<std::int32_t> next_tokens(Generator& generator, int count) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(generator.next());
  return tokens;
}

TEST_EACH(GoldenFiles, AStateOfOneLayer, Device device) {
  const SavedState saved = load_state(golden_file("layer.state"), device);
  ASSERT_EQ(saved.state.layers.size(), 1u);
  expect_same(saved.state.layers[0], golden_files::layer_state(2, DType::bf16, 0));
  EXPECT_TRUE(saved.metadata.fingerprint.empty());
  EXPECT_TRUE(saved.metadata.tokens_seen.empty());
  EXPECT_TRUE(saved.extras.empty());
}

TEST_EACH(GoldenFiles, AStateOfAStack, Device device) {
  const SavedState saved = load_state(golden_file("stack.state"), device);
  expect_same(saved.state, golden_files::stack_state(3, DType::f16));
  EXPECT_EQ(saved.metadata.fingerprint, "0123456789abcdef0123456789abcdef");
  EXPECT_EQ(saved.metadata.tokens_seen, (std::vector<std::int64_t>{7, 0, std::int64_t{1} << 40}));
  EXPECT_EQ(saved.metadata.notes.at("author"), "make_files");
  EXPECT_EQ(bits(saved.extras.at("extra")), bits(golden_files::extra()));
}

TEST_EACH(GoldenFiles, AGenerationInTheMiddleOfAText, Device device) {
  const LanguageModel model = golden_model(device);
  Generator generator = Generator::restore(golden_file("sampled.generation"), model);
  EXPECT_EQ(generator.tokens_seen(), 10);
  EXPECT_EQ(generator.options().temperature, 0.5f);
  EXPECT_EQ(generator.options().top_k, 40);
  EXPECT_EQ(generator.options().repetition_penalty, 1.25f);
  EXPECT_EQ(generator.options().seed, 11u);
  EXPECT_EQ(hash_of(generator.state()), 6772174714834039824u);
  EXPECT_EQ(next_tokens(generator, 8), (std::vector<std::int32_t>{31, 39, 38, 4, 32, 57, 39, 61}));
}

TEST_EACH(GoldenFiles, TheBeginningOfAPromptInACache, Device device) {
  const TemporaryFolder folder;  // using a file changes its time and mode
  std::filesystem::copy(golden_file("prefixes"), folder.path());
  const LanguageModel model = golden_model(device);
  CacheOptions options;
  options.host_bytes = 0;
  options.disk_bytes = 1 << 20;
  options.folder = folder.path().string();
  StateCache cache(model, options);
  Generator generator(model);
  std::vector<std::int32_t> prompt = golden_files::prompt();
  EXPECT_EQ(cache.find(generator, prompt), static_cast<std::int64_t>(prompt.size()));
  EXPECT_EQ(hash_of(generator.state()), 519467387458587820u);
  EXPECT_EQ(next_tokens(generator, 8), (std::vector<std::int32_t>{18, 33, 39, 61, 24, 24, 37, 56}));
}

TEST_EACH(GoldenFiles, ATrainingRun, Device device) {
  LanguageModel model =
      LanguageModel::random(golden_files::training_config(), 2, DType::bf16, device);
  LanguageModelWeights gradients = zero_gradients(model.config(), device);
  AdamW optimizer(parameters(model, gradients));
  StackState carried = model.make_state(2);
  const TrainingProgress progress =
      load_training(golden_file("training.checkpoint"), optimizer, &carried);
  EXPECT_EQ(optimizer.steps(), 5);
  EXPECT_EQ(progress.seed, 7u);
  EXPECT_EQ(progress.draws, 9u);
  EXPECT_EQ(progress.loss_scale.value, 1024);
  EXPECT_EQ(progress.loss_scale.good_steps, 3);
  EXPECT_EQ(progress.positions, (std::vector<std::int64_t>{80, 0}));
  EXPECT_EQ(progress.notes.at("text"), "book.txt");
  expect_same(carried, golden_files::stack_state(2, DType::bf16));
  int first = 0;
  std::as_const(optimizer).each_tensor([&](const std::string& name, ConstTensorView view) {
    Tensor expected(view.shape(), view.dtype());
    golden_files::fill(expected, first++);
    EXPECT_EQ(bits(view), bits(expected)) << name;
  });
  EXPECT_GT(first, 30) << "weights, masters and both moments";
}

}  // namespace
}  // namespace mamba
