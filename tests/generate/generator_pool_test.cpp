// Several texts through one model together: nobody sees the others, who joins or who leaves.
#include <mamba/generator.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <memory>
#include <thread>

#include "each.hpp"
#include "generate/texts.hpp"
#include "host/generate/generator_slots.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::bytes_model;
using testing::expect_error;
using testing::golden_folder;
using testing::TemporaryFolder;

using Ids = std::vector<std::int32_t>;

GenerateOptions tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return options;
}

SamplingOptions lively(std::uint64_t seed, float temperature = 1.2f) {
  SamplingOptions options;
  options.temperature = temperature;
  options.top_k = 40;
  options.repetition_penalty = 1.1f;
  options.seed = seed;
  return options;
}

std::vector<Ids> prompts() {
  testing::Random random(5);
  std::vector<Ids> list;
  for (const std::int64_t length : {7, 1, 64, 7, 33, 2}) {
    list.emplace_back();
    for (std::int64_t i = 0; i < length; ++i) {
      list.back().push_back(static_cast<std::int32_t>(random.integer(1, 255)));
    }
  }
  return list;
}

Generator alone(const LanguageModel& model, const Ids& prompt,
                const SamplingOptions& options = {}) {
  Generator generator(model, options);
  generator.read(prompt);
  return generator;
}

// Each member's state and logits are those that it would have alone, in every dtype, up to the
// rounding of products with another number of rows; above all, no padding is in any state.
TEST_EACH(GeneratorPoolTest, PromptsOfUnequalLengthsLeaveNoTraceInEachOther, Device device,
          DType dtype) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), dtype, device);
  const double bound = dtype == DType::f32 ? 1e-5 : 9 * testing::roundoff(dtype);
  GeneratorPool pool(model, 7);
  std::vector<Generator> members;
  Generator::Group group;
  for (std::size_t i = 0; i < prompts().size(); ++i) members.push_back(pool.make());
  for (Generator& member : members) group.insert(group.begin(), &member);  // not by rows
  std::vector<Ids> texts = prompts();
  Generator::read(group, texts);
  for (std::size_t i = 0; i < group.size(); ++i) {
    Generator single = alone(model, texts[i]);
    EXPECT_EQ(group[i]->tokens_seen(), single.tokens_seen());
    EXPECT_LE(testing::relative_error(testing::values(group[i]->logits()),
                                      testing::values(single.logits())),
              bound);
    const StackState in_group = group[i]->state();
    const StackState by_itself = single.state();
    for (std::size_t layer = 0; layer < in_group.layers.size(); ++layer) {
      const auto error = [&](Tensor MambaState::*part) {
        return testing::relative_error(testing::values(in_group.layers[layer].*part),
                                       testing::values(by_itself.layers[layer].*part));
      };
      EXPECT_LE(error(&MambaState::conv), bound);
      EXPECT_LE(error(&MambaState::ssm), bound);
    }
  }
}

TEST_EACH(GeneratorPoolTest, TextsDoNotDependOnWhoSharesTheBatch, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  GeneratorPool pool(model, 4);
  const std::vector<Ids> texts = prompts();
  // Greedy, and two that draw: all of one kind are chosen in one operation, the others apart.
  const std::vector<SamplingOptions> options{{}, lively(1), {}, lively(2), lively(3, 0.7f), {}};
  std::vector<std::unique_ptr<Generator>> members;
  std::vector<Ids> written(texts.size());
  const auto join = [&](std::size_t i) {
    members.push_back(std::make_unique<Generator>(pool.make(options[i])));
    members.back()->read(texts[i]);
  };
  const auto step = [&](const std::vector<std::size_t>& who, int times) {
    for (int t = 0; t < times; ++t) {
      Generator::Group group;
      for (const std::size_t i : who) group.push_back(members[i].get());
      const std::vector<Chosen> chosen = Generator::next(group);
      for (std::size_t j = 0; j < who.size(); ++j) written[who[j]].push_back(chosen[j].token);
    }
  };
  join(0);
  step({0}, 3);
  join(1);
  join(2);
  step({2, 0, 1}, 5);
  join(3);
  step({3, 1}, 4);  // the others wait
  members[1].reset();
  EXPECT_EQ(pool.size(), 3);
  step({0, 3}, 4);  // with a gap between their rows
  join(4);          // into the row that was left
  members[3].reset();
  join(5);
  step({5, 0, 4, 2}, 9);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    Generator single = alone(model, texts[i], options[i]);
    const auto count = static_cast<std::int64_t>(written[i].size());
    EXPECT_EQ(written[i], single.generate(tokens(count)).tokens) << "member " << i;
  }
}

TEST_EACH(GeneratorPoolTest, WhoHasFinishedLeavesAndTheOthersGoOn, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  GeneratorPool pool(model, 3);
  std::vector<Generator> members;
  Generator::Group group;
  for (int i = 0; i < 3; ++i) members.push_back(pool.make());
  for (Generator& member : members) group.push_back(&member);
  Generator::read(group, {prompts()[0], prompts()[1], prompts()[2]});
  const Tokenizer bytes = Tokenizer::bytes();
  std::vector<GenerateOptions> options{tokens(20), tokens(0), tokens(9)};
  Ids streamed;
  options[2].on_token = [&](std::int32_t token) {
    streamed.push_back(token);
    return streamed.size() < 6;
  };
  const std::vector<Generated> results = Generator::generate(group, options);
  EXPECT_EQ(results[0].tokens, alone(model, prompts()[0]).generate(tokens(20)).tokens);
  EXPECT_EQ(results[0].reason, StopReason::max_tokens);
  EXPECT_EQ(results[1].tokens, Ids());
  EXPECT_EQ(results[2].tokens, alone(model, prompts()[2]).generate(tokens(6)).tokens);
  EXPECT_EQ(results[2].reason, StopReason::callback);
  EXPECT_EQ(results[2].tokens, streamed);
}

TEST_EACH(GeneratorPoolTest, ForksShareThePoolWhileThereIsRoom, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  GeneratorPool pool(model, 4);
  Generator trunk = pool.make(lively(3));
  trunk.read(prompts()[0]);
  trunk.generate(tokens(5));
  std::vector<Generator> inside = trunk.fork(3);
  EXPECT_EQ(pool.size(), 4);
  std::vector<Generator> outside = trunk.fork(3);
  EXPECT_EQ(pool.size(), 4);
  const auto texts = [](std::vector<Generator>& branches) {
    Generator::Group group;
    for (Generator& branch : branches) group.push_back(&branch);
    std::vector<Ids> list;
    for (Generated& result : Generator::generate(group, {tokens(20)})) {
      list.push_back(std::move(result.tokens));
    }
    return list;
  };
  const std::vector<Ids> first = texts(inside);
  EXPECT_EQ(first, texts(outside)) << "the same forks of the same state";
  EXPECT_EQ(first[0], trunk.generate(tokens(20)).tokens) << "the first goes on as the trunk";
  EXPECT_NE(first[1], first[0]);
  EXPECT_NE(first[2], first[0]);
  EXPECT_NE(first[2], first[1]);
  EXPECT_TRUE(trunk.fork(0).empty());
}

TEST_EACH(GeneratorPoolTest, ASavedTextJoinsAPool, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  const TemporaryFolder folder;
  Generator single = alone(model, prompts()[0], lively(3));
  single.generate(tokens(5));
  single.save(folder.file("state"));
  GeneratorPool pool(model, 3);
  Generator other = pool.make();
  other.read(prompts()[1]);
  Generator member = pool.restore(folder.file("state"));
  const auto together = Generator::generate({&member, &other}, {tokens(12)});
  EXPECT_EQ(together[0].tokens, single.generate(tokens(12)).tokens);
  member.save(folder.file("state"));
  EXPECT_EQ(Generator::restore(folder.file("state"), model).generate(tokens(8)).tokens,
            single.generate(tokens(8)).tokens);
}

TEST_EACH(GeneratorPoolTest, ARowIsEmptyForWhoeverTakesItNext, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  GeneratorPool pool(model, 1);
  {
    Generator before = pool.make(lively(1));
    before.read(prompts()[2]);
    before.generate(tokens(10));
  }
  Generator after = pool.make(lively(1));
  after.read(prompts()[0]);
  Generator fresh = alone(model, prompts()[0], lively(1));
  EXPECT_EQ(bits(after.logits()), bits(fresh.logits()));
  EXPECT_EQ(after.generate(tokens(20)).tokens, fresh.generate(tokens(20)).tokens);
}

TEST_EACH(GeneratorPoolTest, AGeneratorOutlivesItsPool, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  auto pool = std::make_unique<GeneratorPool>(model, 2);
  Generator member = pool->make();
  member.read(prompts()[0]);
  pool.reset();
  EXPECT_EQ(member.generate(tokens(5)).tokens,
            alone(model, prompts()[0]).generate(tokens(5)).tokens);
}

TEST_EACH(GeneratorPoolTest, AKnownStateIsTakenOver, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  Generator read = alone(model, prompts()[0], lively(4));
  Generator told(model, lively(4));
  told.continue_from(prompts()[0], read.state(), read.logits());
  EXPECT_EQ(told.tokens_seen(), read.tokens_seen());
  EXPECT_EQ(told.generate(tokens(20)).tokens, read.generate(tokens(20)).tokens);
  expect_error<ArgumentError>("Generator::continue_from: tokens_seen: expected 0, got 26",
                              [&] { told.continue_from({1}, read.state(), read.logits()); });
}

TEST_EACH(GeneratorPoolTest, PoolsOfSeveralThreadsShareAModel, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  std::vector<Ids> got(3), expected;
  for (std::size_t i = 0; i < got.size(); ++i) {
    expected.push_back(alone(model, prompts()[i], lively(i)).generate(tokens(20)).tokens);
  }
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < got.size(); ++i) {
    threads.emplace_back([&, i] {
      Stream stream(model.device(), 2);
      GeneratorPool pool(model, 2, stream);
      GeneratorAccess::slots(pool).ahead = true;
      Generator other = pool.make();
      Generator mine = pool.make(lively(i));
      Generator::read({&mine, &other}, {prompts()[i], prompts()[0]});
      got[i] = Generator::generate({&mine, &other}, {tokens(20)})[0].tokens;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(got, expected);
}

TEST_EACH(GeneratorPoolTest, RefusesWhatCannotWork, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  expect_error<ArgumentError>("GeneratorPool: capacity: expected 1 to 1048576, got 0",
                              [&] { GeneratorPool(model, 0); });
  GeneratorPool pool(model, 2);
  Generator a = pool.make();
  Generator b = pool.make();
  expect_error<ArgumentError>(
      "GeneratorPool::make: capacity: expected room for another sequence, got 2, all in use",
      [&] { pool.make(); });
  Generator stranger(model);
  stranger.read({1});
  a.read({1});
  expect_error<ArgumentError>(
      "Generator::next: group: expected generators of one pool, got one of another pool", [&] {
        Generator::next({&a, &stranger});
      });
  expect_error<ArgumentError>(
      "Generator::next: group: expected every generator once, got one twice", [&] {
        Generator::next({&a, &a});
      });
  expect_error<ArgumentError>("Generator::next: group: expected generators, got none", [&] {
    Generator::next({&a, nullptr});
  });
  expect_error<ArgumentError>("Generator::next: prompt: expected at least one token, got none",
                              [&] {
                                Generator::next({&a, &b});
                              });
  expect_error<ArgumentError>("Generator::read: ids: expected 0 to 255, got 256", [&] {
    Generator::read({&a, &b}, {{1}, {2, 256}});
  });
  EXPECT_EQ(a.tokens_seen(), 1) << "nobody reads if one prompt is wrong";
  expect_error<ArgumentError>("Generator::read: prompts: expected 2, got 1", [&] {
    Generator::read({&a, &b}, {{1}});
  });
  EXPECT_TRUE(Generator::next({}).empty());
}

// ---- running ahead ------------------------------------------------------------------------------

struct Written {
  std::vector<Ids> first, second;
  std::vector<StopReason> reasons;
  std::vector<std::int64_t> tokens_seen;
  std::vector<std::int32_t> draws, seen;
};

// Texts that end for different reasons at different steps, and what is written after them.
Written written(const LanguageModel& model, bool ahead, const std::vector<std::string>& stops) {
  static const Tokenizer bytes = Tokenizer::bytes();
  GeneratorPool pool(model, 5);
  GeneratorSlots& slots = GeneratorAccess::slots(pool);
  slots.ahead = ahead;
  std::vector<Generator> members;
  Generator::Group group;
  members.push_back(pool.make(lively(1)));
  members.push_back(pool.make());  // in no group: a gap between the rows
  for (const std::uint64_t seed : {2, 3}) members.push_back(pool.make(lively(seed, 0.8f)));
  members.push_back(pool.make());
  std::vector<GenerateOptions> options;
  for (const std::size_t i : {0, 2, 3, 4}) {
    group.push_back(&members[i]);
    members[i].read(prompts()[i]);
    options.push_back(tokens(i == 3 ? 5 : 25));
    options.back().tokenizer = &bytes;
    if (!stops.empty()) options.back().stop = {stops[options.size() - 1]};
  }
  Written result;
  for (Generated& text : Generator::generate(group, options)) {
    result.first.push_back(std::move(text.tokens));
    result.reasons.push_back(text.reason);
  }
  for (Generator* member : group) {
    member->state();  // the last token goes through the model where it has not
    result.tokens_seen.push_back(member->tokens_seen());
  }
  const auto integers = [](const Tensor& tensor) {
    const Tensor host = tensor.to(Device::cpu());
    return std::vector<std::int32_t>(host.data<std::int32_t>(),
                                     host.data<std::int32_t>() + host.count());
  };
  result.draws = integers(slots.draws);
  result.seen = integers(slots.seen);
  for (Generated& text : Generator::generate(group, {tokens(12)})) {
    result.second.push_back(std::move(text.tokens));
  }
  return result;
}

TEST_EACH(GeneratorPoolTest, AStepQueuedBeforeTheLastTokenIsKnownChangesNothing, MixerKind mixer,
          Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  std::vector<std::string> stops;
  for (const Ids& text : written(model, false, {}).first) {  // as they are without stops
    const std::size_t end = std::min<std::size_t>(text.size(), 4 + 3 * stops.size());
    stops.emplace_back(text.begin() + static_cast<std::ptrdiff_t>(end) - 2,
                       text.begin() + static_cast<std::ptrdiff_t>(end));
  }
  for (const auto& list : {std::vector<std::string>{}, stops}) {
    const Written expected = written(model, false, list);
    const Written got = written(model, true, list);
    EXPECT_EQ(got.first, expected.first);
    EXPECT_EQ(got.reasons, expected.reasons);
    EXPECT_EQ(got.tokens_seen, expected.tokens_seen);
    EXPECT_EQ(got.draws, expected.draws) << "what was chosen too much is taken back";
    EXPECT_EQ(got.seen, expected.seen);
    EXPECT_EQ(got.second, expected.second);
    const auto stopped = [](StopReason reason) { return reason == StopReason::stop_string; };
    const auto count = std::count_if(got.reasons.begin(), got.reasons.end(), stopped);
    EXPECT_EQ(count > 2, !list.empty());
  }
}

// Callbacks that use no generator do not hold the next step up, hear of every token in its turn,
// and end a text as they would have.
TEST_EACH(GeneratorPoolTest, CallbacksApartHearTheSameWhileTheDeviceIsAhead, MixerKind mixer,
          Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  const Tokenizer bytes = Tokenizer::bytes();
  struct Heard {
    Ids tokens;
    std::string text;
    std::int32_t draws = 0;  // that the device had made when the third token was told
    std::int64_t seen = 0;
    Ids after;
  };
  const auto hear = [&](bool ahead, bool apart) {
    GeneratorPool pool(model, 1);
    GeneratorSlots& slots = GeneratorAccess::slots(pool);
    slots.ahead = ahead;
    Generator generator = pool.make(lively(3));
    generator.read(prompts()[0]);
    Heard heard;
    GenerateOptions options = tokens(40);
    options.tokenizer = &bytes;
    options.callbacks_apart = apart;
    options.on_token = [&](std::int32_t token) {
      heard.tokens.push_back(token);
      if (heard.tokens.size() == 3)
        heard.draws = slots.draws.to(Device::cpu()).data<std::int32_t>()[0];
      return heard.tokens.size() < 9;
    };
    options.on_text = [&](std::string_view text) {
      heard.text += text;
      return true;
    };
    const Generated generated = generator.generate(options);
    EXPECT_EQ(generated.reason, StopReason::callback);
    EXPECT_EQ(generated.tokens, heard.tokens);
    generator.state();
    heard.seen = generator.tokens_seen();
    heard.after = generator.generate(tokens(12)).tokens;
    return heard;
  };
  const Heard expected = hear(false, false);
  EXPECT_EQ(expected.tokens.size(), 9U);
  for (const bool apart : {false, true}) {
    const Heard got = hear(true, apart);
    EXPECT_EQ(got.tokens, expected.tokens);
    EXPECT_EQ(got.text, expected.text);
    EXPECT_EQ(got.seen, expected.seen);
    EXPECT_EQ(got.after, expected.after);
    EXPECT_EQ(got.draws, apart ? 4 : 3) << "whether it was ahead";
  }
}

// Alone, nobody's company can round anything differently: the saved bytes are the same.
TEST_EACH(GeneratorPoolTest, StoppedWhileRunningAheadIsSavedAsIfItHadNot, MixerKind mixer,
          Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  const TemporaryFolder folder;
  const Tokenizer bytes = Tokenizer::bytes();
  const Ids text = alone(model, prompts()[0], lively(3)).generate(tokens(15)).tokens;
  GenerateOptions options = tokens(40);
  options.tokenizer = &bytes;
  options.stop = {std::string(text.begin() + 8, text.begin() + 11)};
  std::vector<std::string> saved;
  for (const bool ahead : {false, true}) {
    GeneratorPool pool(model, 1);
    GeneratorAccess::slots(pool).ahead = ahead;
    Generator generator = pool.make(lively(3));
    generator.read(prompts()[0]);
    EXPECT_EQ(generator.generate(options).reason, StopReason::stop_string);
    generator.save(folder.file("state"));
    std::ifstream file(folder.file("state"), std::ios::binary);
    saved.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  EXPECT_TRUE(saved[0] == saved[1]);
}

// Nothing is recorded on the legacy default stream: there every step is made of calls.
TEST_EACH(GeneratorPoolTest, AGraphWritesWhatTheCallsInItWrite, testing::CudaDevice device,
          DType dtype) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"), dtype, device);
  Stream recorded(device);
  Stream called = Stream::borrow(device, nullptr);
  std::vector<std::vector<Ids>> texts;
  for (Stream* stream : {&recorded, &called}) {
    texts.emplace_back();
    GeneratorPool pool(model, 4, *stream);
    EXPECT_EQ(GeneratorAccess::slots(pool).records(), stream == &recorded);
    std::vector<Generator> members;
    for (const std::uint64_t seed : {1, 2, 3, 4}) members.push_back(pool.make(lively(seed)));
    for (std::size_t i = 0; i < 4; ++i) members[i].read(prompts()[i]);
    const auto write = [&](const std::vector<std::size_t>& who) {
      Generator::Group group;
      for (const std::size_t i : who) group.push_back(&members[i]);
      for (Generated& text : Generator::generate(group, {tokens(8)})) {
        texts.back().push_back(std::move(text.tokens));
      }
    };
    write({0, 1, 2, 3});
    write({0, 1});  // the first rows
    write({0, 2});  // others, of the same number
    write({1, 3});
    Scratch scratch(*stream);  // held by the caller: a recording may not write there
    const TensorView mine = scratch.take({1 << 16}, DType::f32);
    zero(mine, *stream);
    write({0, 1, 2, 3});
    const std::vector<double> kept = testing::values(mine);
    EXPECT_EQ(std::count(kept.begin(), kept.end(), 0.0), mine.count());
  }
  EXPECT_EQ(texts[0], texts[1]);
}

// ---- text ---------------------------------------------------------------------------------------

// The bytes of a character that a call's end cut come out in the next call, from a file too.
TEST_EACH(GeneratorPoolTest, HalfACharacterIsKeptAndSaved, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device);
  const Tokenizer bytes = Tokenizer::bytes();
  const TemporaryFolder folder;
  std::string text;
  GenerateOptions options = tokens(60);
  options.tokenizer = &bytes;
  options.on_text = [&](std::string_view part) {
    TextStream whole;
    EXPECT_EQ(whole.push(part), part) << "whole characters only";
    EXPECT_EQ(whole.held(), "");
    text += part;
    return true;
  };
  SamplingOptions wild;  // all bytes, so that many begin characters
  wild.temperature = 30;
  wild.seed = 5;
  Generator reference = alone(model, prompts()[0], wild);
  reference.generate(options);
  const std::string expected = text;

  text.clear();
  Generator stopped = alone(model, prompts()[0], wild);
  int held = 0;
  options.max_tokens = 1;
  for (int i = 0; i < 60; ++i) {
    stopped.generate(options);
    stopped.save(folder.file("state"));
    stopped = Generator::restore(folder.file("state"), model);
    held += Generator::restore(folder.file("state"), model).finish_text().empty() ? 0 : 1;
  }
  EXPECT_EQ(text, expected);
  EXPECT_GT(held, 0) << "the text never stopped inside of a character: choose another seed";

  GenerateOptions without = tokens(1);
  without.on_text = options.on_text;
  expect_error<ArgumentError>(
      "Generator::generate: tokenizer: expected one, to make text with, got none",
      [&] { stopped.generate(without); });
}

}  // namespace
}  // namespace mamba
