// A text that can be read in pieces, forked, stopped, saved and gone on with.
#include <mamba/generator.hpp>

#include <fstream>
#include <set>

#include <mamba/safetensors.hpp>
#include <mamba/state_file.hpp>

#include "each.hpp"
#include "files.hpp"
#include "generate/texts.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::bytes_model;
using testing::expect_error;
using testing::golden_folder;
using testing::Ids;
using testing::lively;
using testing::prompt;
using testing::TemporaryFolder;

Ids generate(Generator& generator, std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return generator.generate(options).tokens;
}

Ids joined(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_EACH(GeneratorTest, SameSeedAndSameCallsGiveTheSameText, MixerKind mixer, Device device,
          DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const auto text = [&](std::uint64_t seed) {
    Generator generator(model, lively(seed));
    generator.read(prompt);
    return generate(generator, 40);
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
  EXPECT_NE(text(1), text(1ull << 40 | 1)) << "the upper half of the seed counts";
}

TEST_EACH(GeneratorTest, StopAndResumeIsBitIdentical, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const TemporaryFolder folder;
  for (const SamplingOptions& options : {SamplingOptions{}, lively(3)}) {
    Generator whole(model, options);
    whole.read(prompt);
    const Ids text = generate(whole, 30);
    for (std::int64_t stop : {0, 1, 13, 29}) {
      Generator first(model, options);
      first.read(prompt);
      const Ids before = generate(first, stop);
      first.save(folder.file("state"));
      Generator second = Generator::restore(folder.file("state"), model);
      EXPECT_TRUE(second.options() == options);
      EXPECT_EQ(second.tokens_seen(), static_cast<std::int64_t>(prompt.size()) + stop);
      EXPECT_EQ(joined(before, generate(second, 30 - stop)), text) << "stopped after " << stop;
      EXPECT_EQ(bits(second.logits()), bits(whole.logits()));
      EXPECT_EQ(bits(second.state().layers[1].ssm), bits(whole.state().layers[1].ssm));
      EXPECT_EQ(bits(second.state().layers[0].conv), bits(whole.state().layers[0].conv));
      EXPECT_EQ(joined(before, generate(first, 30 - stop)), text) << "saving disturbs nothing";
    }
  }
}

// Another device rounds otherwise: the text is the same where its leads are large, as here in f32.
TEST_EACH(GeneratorTest, AnotherDeviceGoesOnWithTheSameText, Device from, Device to) {
  const TemporaryFolder folder;
  const auto load = [](Device device) {
    return LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  };
  SamplingOptions options;
  options.repetition_penalty = 1.1f;  // the history goes along
  const LanguageModel first_model = load(from);
  Generator whole(first_model, options);
  whole.read(prompt);
  const Ids text = generate(whole, 24);
  Generator first(first_model, options);
  first.read(prompt);
  const Ids before = generate(first, 9);
  first.save(folder.file("state"));
  const LanguageModel second_model = load(to);
  Generator second = Generator::restore(folder.file("state"), second_model);
  EXPECT_EQ(joined(before, generate(second, 15)), text) << from.name() << " to " << to.name();
}

TEST_EACH(GeneratorTest, APromptMayFollowARestoredState, MixerKind mixer, Device device,
          DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const TemporaryFolder folder;
  Generator whole(model, lively(3));
  whole.read(prompt);
  Ids text = generate(whole, 5);
  whole.save(folder.file("state"));
  whole.read({32, 33});
  text = joined(text, generate(whole, 5));
  Generator resumed = Generator::restore(folder.file("state"), model);
  resumed.read({32, 33});
  EXPECT_EQ(generate(resumed, 5), Ids(text.begin() + 5, text.end()));
}

TEST_EACH(GeneratorTest, ForksAreIndependent, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  Generator trunk(model, lively(3));
  trunk.read(prompt);
  generate(trunk, 6);
  Generator same = trunk.fork();
  Generator other = trunk.fork();
  other.reseed(99);
  const Ids text = generate(trunk, 25);
  EXPECT_EQ(generate(same, 25), text);
  EXPECT_NE(generate(other, 25), text);
}

TEST_EACH(GeneratorTest, GreedyPenaltyAvoidsWhatWasSeenOncePerToken, MixerKind mixer, Device device,
          DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  SamplingOptions options;
  options.repetition_penalty = 1000;
  Generator generator(model, options);
  generator.read(prompt);
  const Ids text = generate(generator, 60);
  const std::set<std::int32_t> distinct(text.begin(), text.end());
  EXPECT_EQ(distinct.size(), text.size()) << "a penalty of 1000 forbids every repetition";
  for (std::int32_t id : prompt) EXPECT_EQ(distinct.count(id), 0u) << "the prompt counts too";
}

TEST_EACH(GeneratorTest, EndsWhereItIsTold, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const Tokenizer tokenizer = Tokenizer::bytes();
  const auto fresh = [&] {
    Generator generator(model);
    generator.read(prompt);
    return generator;
  };
  Generator reference = fresh();
  const Ids text = generate(reference, 24);

  GenerateOptions options;
  options.max_tokens = 24;
  options.tokenizer = &tokenizer;
  const std::string all = tokenizer.decode(text);
  options.stop = {"not in the text", all.substr(4, 3)};
  const std::size_t end = all.find(options.stop[1]) + 3;
  Generator stopped = fresh();
  Generated result = stopped.generate(options);
  EXPECT_EQ(result.reason, StopReason::stop_string);
  EXPECT_EQ(result.tokens, Ids(text.begin(), text.begin() + static_cast<long>(end)));

  Generator across = fresh();  // a stop string that begins in one call and ends in the next
  options.max_tokens = static_cast<std::int64_t>(end) - 1;
  EXPECT_EQ(across.generate(options).reason, StopReason::max_tokens);
  options.max_tokens = 24;
  result = across.generate(options);
  EXPECT_EQ(result.reason, StopReason::stop_string);
  EXPECT_EQ(result.tokens.size(), 1u);

  options.stop.clear();
  Ids streamed;
  options.on_token = [&](std::int32_t token) {
    streamed.push_back(token);
    return streamed.size() < 5;
  };
  Generator called = fresh();
  result = called.generate(options);
  EXPECT_EQ(result.reason, StopReason::callback);
  EXPECT_EQ(result.tokens, streamed);
  EXPECT_EQ(streamed, Ids(text.begin(), text.begin() + 5));
  EXPECT_EQ(generate(called, 19), Ids(text.begin() + 5, text.end())) << "and can go on";
}

TEST_EACH(GeneratorTest, EndOfTextEndsUnlessIgnored, Device device) {
  LanguageModelConfig config;
  config.layer.d_model = 8;
  config.n_layer = 1;
  config.vocab_size = 16;
  const LanguageModel model = LanguageModel::random(config, 1, DType::f32, device);
  Generator reference(model);
  reference.read({1, 2, 3});
  const Ids text = generate(reference, 6);
  config.eos_token_ids = {text[2]};
  const LanguageModel ending = LanguageModel::random(config, 1, DType::f32, device);
  GenerateOptions options;
  options.max_tokens = 6;
  Generator generator(ending);
  generator.read({1, 2, 3});
  const Generated result = generator.generate(options);
  const auto first = std::find(text.begin(), text.end(), text[2]);
  EXPECT_EQ(result.reason, StopReason::eos);
  EXPECT_EQ(result.tokens, Ids(text.begin(), first + 1));
}

TEST_EACH(GeneratorTest, RefusesWhatCannotWork, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  Generator generator(model);
  expect_error<ArgumentError>("Generator::next: prompt: expected at least one token, got none",
                              [&] { generator.next(); });
  expect_error<ArgumentError>("Generator::read: ids: expected 0 to 255, got 256", [&] {
    generator.read({1, 256});
  });
  EXPECT_EQ(generator.tokens_seen(), 0);
  generator.read({1});
  GenerateOptions options;
  options.stop = {"x"};
  expect_error<ArgumentError>(
      "Generator::generate: tokenizer: expected one, to find stop strings with, got none",
      [&] { generator.generate(options); });
  SamplingOptions bad;
  bad.top_p = 1.5f;
  expect_error<ArgumentError>("SamplingOptions: top_p: expected 0 to 1, got 1.5",
                              [&] { Generator(model, bad); });
  bad = {};
  bad.top_k = 5;
  expect_error<ArgumentError>(
      "SamplingOptions: temperature: expected above 0 where top_k, top_p or min_p is given, "
      "got 0 (greedy)",
      [&] { Generator(model, bad); });
}

// ---- state files of a generation ----------------------------------------------------------------

class GeneratorFile : public ::testing::Test {
 protected:
  // A model, and a file that a generator of it wrote.
  LanguageModel model_with_file(Device device) const {
    LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32, device);
    Generator generator(model, lively(3));
    generator.read({1, 2, 3});
    generate(generator, 3);
    generator.save(path());
    return model;
  }
  std::string path() const { return folder_.file("state"); }
  void expect_refused(const LanguageModel& model, const std::string& part) const {
    try {
      Generator::restore(path(), model);
      ADD_FAILURE() << "expected a FormatError with " << part;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  TemporaryFolder folder_;
};

TEST_EACH_F(GeneratorFile, OfAnotherModelIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  expect_refused(LanguageModel::random(model.config(), 7, DType::f32, model.device()),
                 "one of another (");  // of its shapes
}

TEST_EACH_F(GeneratorFile, OfAnotherDtypeIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  expect_refused(LanguageModel::load(golden_folder("base"), DType::bf16, model.device()), "bf16");
}

TEST_EACH_F(GeneratorFile, CutShortAnywhereIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  std::ifstream file(path(), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(file)), {});
  ASSERT_GT(whole.size(), 1000u);
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    std::ofstream(path(), std::ios::binary | std::ios::trunc)
        .write(whole.data(), static_cast<long>(size));
    EXPECT_THROW(Generator::restore(path(), model), FormatError) << size;
  }
}

// Wherever the bit is: in a name, a number, a state, a logit.
TEST_EACH_F(GeneratorFile, WithAFlippedBitIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  const std::string whole = testing::read_file(path());
  testing::Random random(5);
  for (int trial = 0; trial < 600; ++trial) {
    const auto at =
        static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(whole.size()) - 1));
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.integer(0, 7)));
    testing::write_file(path(), damaged);
    EXPECT_THROW(Generator::restore(path(), model), FormatError) << "byte " << at;
  }
  const std::string middle = [&] {
    std::string damaged = whole;
    damaged[whole.size() / 2] = static_cast<char>(damaged[whole.size() / 2] ^ 4);
    return damaged;
  }();
  testing::write_file(path(), middle);
  expect_refused(model, "expected the contents that were written, got others");
}

TEST_EACH_F(GeneratorFile, OfAVersionThatKeptNoHashIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  const SavedState saved = load_state(path());
  StateMetadata metadata = saved.metadata;
  ASSERT_EQ(metadata.notes.erase("hash"), 1u);
  const StateExtras extras(saved.extras.begin(), saved.extras.end());
  save(path(), saved.state, metadata, extras);
  expect_refused(model, "expected a file with a hash of its contents, got one without");
}

TEST_EACH_F(GeneratorFile, WithoutItsGenerationIsRefused, Device device) {
  const LanguageModel model = model_with_file(device);
  const SavedState saved = load_state(path());
  StateMetadata metadata = saved.metadata;
  save(path(), saved.state, metadata);
  expect_refused(model, "generator.logits");
  metadata.notes.clear();
  save(path(), saved.state, metadata);
  expect_refused(model, "a bare state");
  metadata.fingerprint.clear();
  save(path(), saved.state, metadata);
  expect_refused(model, "a state of no stated model");
}

}  // namespace
}  // namespace mamba
