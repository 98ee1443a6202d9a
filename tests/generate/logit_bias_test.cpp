// Tokens that are made likelier, less likely or impossible.
#include <mamba/generator.hpp>

#include <algorithm>
#include <limits>
#include <set>

#include <mamba/speculative.hpp>

#include "each.hpp"
#include "generate/texts.hpp"
#include "host/generate/generator_slots.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::bytes_model;
using testing::expect_error;
using testing::Ids;
using testing::lively;
using testing::prompt;

const Ids vowels{97, 101, 105, 111, 117};

SamplingOptions only(const Ids& allowed, SamplingOptions options = {}) {
  options.allowed = allowed;
  return options;
}

Ids generate(Generator& generator, std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return generator.generate(options).tokens;
}

Ids text_of(const LanguageModel& model, const SamplingOptions& sampling, std::int64_t count = 30) {
  Generator generator(model, sampling);
  generator.read(prompt);
  return generate(generator, count);
}

bool all_in(const Ids& text, const Ids& allowed) {
  return std::all_of(text.begin(), text.end(), [&](std::int32_t id) {
    return std::find(allowed.begin(), allowed.end(), id) != allowed.end();
  });
}

// Greedy: the largest of the logits that are left, whatever the others are.
TEST_EACH(LogitBias, TheLikeliestOfWhatIsAllowedIsChosen, Device device) {
  const LanguageModel model = bytes_model(device);
  Generator generator(model, only(vowels));
  Generator reader(model);
  generator.read(prompt);
  reader.read(prompt);
  for (int i = 0; i < 20; ++i) {
    const std::vector<double> logits = testing::values(reader.logits());
    const auto best = *std::max_element(vowels.begin(), vowels.end(), [&](auto a, auto b) {
      return logits[static_cast<std::size_t>(a)] < logits[static_cast<std::size_t>(b)];
    });
    EXPECT_EQ(bits(generator.logits()), bits(reader.logits())) << "logits are the model's own";
    ASSERT_EQ(generator.next(), best);
    reader.read({best});
  }
  const Ids drawn = text_of(model, only(vowels, lively(3)), 60);
  EXPECT_TRUE(all_in(drawn, vowels));
  EXPECT_EQ(std::set<std::int32_t>(drawn.begin(), drawn.end()).size(), vowels.size());
}

TEST_EACH(LogitBias, MakesLikelierAndUnlikely, Device device) {
  const LanguageModel model = bytes_model(device);
  const Ids plain = text_of(model, {});
  SamplingOptions options;
  options.logit_bias = {{120, 1e6f}};
  EXPECT_EQ(text_of(model, options, 5), Ids(5, 120));
  options.logit_bias = {{plain.front(), -1e6f}};
  const Ids without = text_of(model, options);
  EXPECT_EQ(std::count(without.begin(), without.end(), plain.front()), 0);
  options.logit_bias.clear();
  for (std::int32_t id = 0; id < 256; ++id) options.logit_bias[id] = 2.5f;
  EXPECT_EQ(text_of(model, options), plain) << "the same for all changes nothing";
  options = only({101, 120});
  options.logit_bias = {{120, 1e6f}};
  EXPECT_EQ(text_of(model, options, 5), Ids(5, 120)) << "both at once";
}

TEST_EACH(LogitBias, OfOneMemberIsNoneOfTheOthers, Device device) {
  const LanguageModel model = bytes_model(device);
  for (const bool ahead : {false, true}) {
    GeneratorPool pool(model, 4);
    GeneratorAccess::slots(pool).ahead = ahead;
    const std::vector<SamplingOptions> options{
        lively(1), only(vowels, lively(2)), {}, only({120, 121})};
    std::vector<Generator> members;
    std::vector<Ids> got(4);
    Generator::Group group;
    for (const SamplingOptions& one : options) members.push_back(pool.make(one));
    for (Generator& member : members) group.push_back(&member);
    Generator::read(group, {prompt, prompt, prompt, prompt});
    for (const std::int64_t count : {7, 1, 12}) {
      GenerateOptions asked;
      asked.ignore_eos = true;
      asked.max_tokens = count;
      std::vector<GenerateOptions> each(4, asked);
      each[3].max_tokens = 3;  // ends while the others go on
      const std::vector<Generated> texts = Generator::generate(group, each);
      for (std::size_t i = 0; i < 4; ++i) {
        got[i].insert(got[i].end(), texts[i].tokens.begin(), texts[i].tokens.end());
      }
    }
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(got[i], text_of(model, options[i], static_cast<std::int64_t>(got[i].size())))
          << "member " << i;
    }
    members.pop_back();
    members.push_back(pool.make());  // into the row that had a bias
    members.back().read(prompt);
    EXPECT_EQ(generate(members.back(), 10), text_of(model, {}, 10));
  }
}

TEST_EACH(LogitBias, GoesAlongWithForksSnapshotsAndFiles, Device device) {
  const LanguageModel model = bytes_model(device);
  SamplingOptions options = only(vowels, lively(5));
  options.logit_bias = {{97, -1.5f}, {117, 0.1f}};
  Generator generator(model, options);
  generator.read(prompt);
  generate(generator, 9);
  Generator fork = generator.fork();
  const GeneratorSnapshot snapshot = generator.snapshot();
  const Ids rest = generate(generator, 20);
  EXPECT_TRUE(all_in(rest, vowels));
  EXPECT_EQ(generate(fork, 20), rest);
  Generator plain(model);
  plain.copy_from(snapshot);
  EXPECT_EQ(generate(plain, 20), rest);
  const GeneratorSnapshot loaded = GeneratorSnapshot::load(snapshot.save());
  EXPECT_TRUE(loaded.options() == options);
  Generator second(model, loaded);
  EXPECT_EQ(generate(second, 20), rest);
  second.copy_from(fork.snapshot());
  Generator without(model, lively(5));
  without.read(prompt);
  second.copy_from(without.snapshot());
  EXPECT_EQ(generate(second, 20), generate(without, 20)) << "the bias is gone with its options";
}

TEST_EACH(LogitBias, OfATextWithADraft, Device device) {
  const LanguageModel model = bytes_model(device);
  const LanguageModel small = LanguageModel::random(model.config(), 5, DType::f32, model.device());
  for (const SamplingOptions& of_draft : {SamplingOptions{}, only(vowels)}) {
    Generator target(model, only(vowels)), draft(small, of_draft);
    Speculation speculation(target, draft, 3);
    speculation.read(prompt);
    Ids text;
    while (text.size() < 20) {
      for (const std::int32_t token : speculation.next()) text.push_back(token);
    }
    text.resize(20);
    EXPECT_EQ(text, text_of(model, only(vowels), 20));
  }
  Generator target(model, only(vowels, lively(2))), draft(small, lively(2));
  Speculation speculation(target, draft, 4);
  speculation.read(prompt);
  GenerateOptions asked;
  asked.max_tokens = 40;
  EXPECT_TRUE(all_in(speculation.generate(asked).tokens, vowels));
}

TEST_EACH(LogitBias, RefusesWhatCannotWork, Device device) {
  const LanguageModel model = bytes_model(device);
  expect_error<ArgumentError>("SamplingOptions: allowed: expected 0 to 255, got 256", [&] {
    Generator(model, only({1, 256}));
  });
  expect_error<ArgumentError>("SamplingOptions: allowed: expected 0 to 255, got -1",
                              [&] { Generator(model, only({-1})); });
  SamplingOptions options;
  options.logit_bias = {{300, 1.0f}};
  GeneratorPool pool(model, 1);
  expect_error<ArgumentError>("SamplingOptions: logit_bias: expected 0 to 255, got 300",
                              [&] { pool.make(options); });
  EXPECT_EQ(pool.size(), 0);
  options.logit_bias = {{3, std::numeric_limits<float>::infinity()}};
  expect_error<ArgumentError>(
      "SamplingOptions: logit_bias: expected a finite value for token 3, got inf",
      [&] { pool.make(options); });
}

}  // namespace
}  // namespace mamba
