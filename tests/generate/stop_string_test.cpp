// Where a text ends that is to end after a stop string: inside of tokens and across them.
#include <mamba/generator.hpp>
#include <mamba/speculative.hpp>

#include "each.hpp"
#include "files.hpp"
#include "generate/bpe_model.hpp"
#include "host/generate/generator_slots.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::BpeModel;
using testing::pieces_with_stops;
using testing::TemporaryFolder;

struct Case {
  std::string stop;
  std::size_t tokens;  // generated after the first piece
  std::string text;
};

std::vector<Case> cases() {
  return {{".", 2, "b."},
          {"\"", 2, "b.\""},
          {".\"c", 3, "b.\"c"},
          {"b.\"c\n", 4, "b.\"c\n"},
          {"\n", 4, "b.\"c\n"},
          {"  ", 4, "b.\"c\n  "},
          {"an", 6, "b.\"c\n    d an"},
          {"d and", 6, "b.\"c\n    d and"},
          {"\xC3\xA9", 9, "b.\"c\n    d ande\xC3\xA9"},
          {"f", 10,
           "b.\"c\n    d ande\xC3\xA9"
           "f"},
          {")", 11,
           "b.\"c\n    d ande\xC3\xA9"
           "f..)"},
          {"f.", 11,
           "b.\"c\n    d ande\xC3\xA9"
           "f."}};
}

class StopStringTest : public ::testing::Test {
 protected:
  LanguageModel load(Device device) const {
    return LanguageModel::load(folder_.path(), DType::f32, device);
  }
  GenerateOptions stop_at(const std::vector<std::string>& stops, std::string* text) const {
    GenerateOptions options;
    options.max_tokens = 12;
    options.tokenizer = &bpe_.tokenizer;
    options.stop = stops;
    if (text != nullptr) {
      options.on_text = [text](std::string_view more) {
        *text += more;
        return true;
      };
    }
    return options;
  }
  Generator begun(const LanguageModel& model) const {
    Generator generator(model);
    generator.read({bpe_.ids[0]});
    return generator;
  }
  void expect_end(const Generated& result, const Case& expected) const {
    EXPECT_FALSE(result.error);
    EXPECT_EQ(result.reason, StopReason::stop_string);
    EXPECT_EQ(result.tokens.size(), expected.tokens);
  }

  TemporaryFolder folder_;
  BpeModel bpe_{folder_.path(), pieces_with_stops()};
};

TEST_EACH_F(StopStringTest, EndsInTheTokenThatCompletesIt, Device device) {
  const LanguageModel model = load(device);
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.stop);
    std::string text;
    Generator generator = begun(model);
    expect_end(generator.generate(stop_at({"not there", one.stop}, &text)), one);
    EXPECT_EQ(text, one.text) << "and no more is given out";
    EXPECT_EQ(generator.finish_text(), "");
    Generator silent = begun(model);
    expect_end(silent.generate(stop_at({one.stop}, nullptr)), one);
    EXPECT_EQ(silent.tokens_seen(), 1 + static_cast<std::int64_t>(one.tokens));
  }
}

TEST_EACH_F(StopStringTest, TheFirstOfSeveralCounts, Device device) {
  const LanguageModel model = load(device);
  std::string text;
  Generator generator = begun(model);
  expect_end(generator.generate(stop_at({"..)", "f.", "..", "i"}, &text)), {"", 11, ""});
  EXPECT_EQ(text.substr(text.size() - 2), "f.");
}

TEST_EACH_F(StopStringTest, EndsAsWellInAPoolAndRunningAhead, Device device) {
  const LanguageModel model = load(device);
  const std::vector<Case> all = cases();
  for (const bool ahead : {false, true}) {
    GeneratorPool pool(model, static_cast<std::int64_t>(all.size()));
    GeneratorAccess::slots(pool).ahead = ahead;
    std::vector<Generator> members;
    Generator::Group group;
    std::vector<GenerateOptions> options;
    std::vector<std::string> texts(all.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      members.push_back(pool.make());
      members.back().read({bpe_.ids[0]});
      options.push_back(stop_at({all[i].stop}, ahead ? nullptr : &texts[i]));
    }
    for (Generator& member : members) group.push_back(&member);
    const std::vector<Generated> results = Generator::generate(group, options);
    for (std::size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(all[i].stop);
      expect_end(results[i], all[i]);
      if (ahead) continue;  // with a callback nothing runs ahead
      EXPECT_EQ(texts[i], all[i].text);
    }
  }
}

TEST_EACH_F(StopStringTest, EndsAsWellWithADraft, Device device) {
  const LanguageModel model = load(device);
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.stop);
    Generator target = begun(model);
    Generator draft = begun(model);
    std::string text;
    expect_end(Speculation(target, draft, 3).generate(stop_at({one.stop}, &text)), one);
    EXPECT_EQ(text, one.text);
  }
}

// The state has seen the whole token, so what was held back of it comes when the text goes on: in
// this process, in a fork, and in another process.
TEST_EACH_F(StopStringTest, WhatWasHeldBackComesFirstWhenTheTextGoesOn, Device device) {
  const LanguageModel model = load(device);
  const std::string whole = bpe_.text(1, bpe_.pieces.size());
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.stop);
    std::string text;
    Generator generator = begun(model);
    generator.generate(stop_at({one.stop}, &text));
    generator.save(folder_.file("state"));
    Generator fork = generator.fork();
    Generator restored = Generator::restore(folder_.file("state"), model);
    for (Generator* next : {&generator, &fork, &restored}) {
      std::string rest;
      GenerateOptions options = stop_at({}, &rest);
      options.max_tokens -= static_cast<std::int64_t>(one.tokens);
      if (options.max_tokens == 0) continue;
      next->generate(options);
      EXPECT_EQ(text + rest, whole);
    }
  }
}

// A stop string that an earlier token completed ends no later one.
TEST_EACH_F(StopStringTest, OneThatIsPastEndsNothing, Device device) {
  const LanguageModel model = load(device);
  Generator generator = begun(model);
  EXPECT_EQ(generator.generate(stop_at({"."}, nullptr)).tokens.size(), 2u);
  const Generated more = generator.generate(stop_at({"."}, nullptr));
  EXPECT_EQ(more.reason, StopReason::stop_string);
  EXPECT_EQ(more.tokens.size(), 9u) << "the next with a full stop is the eleventh";
}

TEST_EACH(TokensSeen, CountsTheLastOneChosen, Device device) {
  const LanguageModel model =
      LanguageModel::load(testing::golden_folder("base"), DType::f32, device);
  Generator generator(model);
  generator.read({1, 2, 3});
  for (std::int64_t count = 1; count <= 5; ++count) {
    generator.next();
    EXPECT_EQ(generator.tokens_seen(), 3 + count);
  }
  generator.logits();  // the last one goes through the model
  EXPECT_EQ(generator.tokens_seen(), 8);
  EXPECT_EQ(generator.fork().tokens_seen(), 8);
}

}  // namespace
}  // namespace mamba
