// The engine of mamba-server without sockets: whoever asks gets what he would get alone.
#include "server/engine.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <map>
#include <thread>

#include "generate/texts.hpp"
#include "programs/whole_text.hpp"
#include "server/poisoned_model.hpp"
#include "testing.hpp"

namespace server {
namespace {

using mamba::testing::bytes_model;
using mamba::testing::lively;
using mamba::testing::poisoned_model;

// What came of one choice.
struct Told {
  Ids ids;
  std::vector<std::int64_t> positions;
  std::vector<mamba::LogProbs> log_probs;
  std::string text, error;
  std::optional<Finished> end;
  int ends = 0;  // of both kinds
};

struct Record : Listener {
  std::map<int, Told> choices;
  std::optional<PromptRead> prompt;
  std::function<void()> on_token = [] {};
  std::atomic<int> ended{0};

  void read(const PromptRead& told) override {
    EXPECT_FALSE(prompt);
    prompt = told;
  }
  void token(int choice, Token token) override {
    Told& told = choices[choice];
    EXPECT_EQ(told.ends, 0);
    told.ids.push_back(token.id);
    told.positions.push_back(token.position);
    told.text += token.text;
    if (token.log_probs) told.log_probs.push_back(*token.log_probs);
    on_token();
  }
  void finished(int choice, Finished end) override {
    Told& told = choices[choice];
    EXPECT_EQ(told.ends++, 0);
    told.text += end.text;
    told.end = std::move(end);
    ++ended;
  }
  void failed(int choice, const std::string& why) override {
    Told& told = choices[choice];
    EXPECT_EQ(told.ends++, 0);
    told.error = why;
    ++ended;
  }
};

class EngineTest : public ::testing::Test {
 protected:
  explicit EngineTest(mamba::LanguageModel model = bytes_model(mamba::Device::cpu()))
      : model_(std::move(model)) {}

  Engine& engine(std::int64_t capacity, EngineOptions options = {},
                 mamba::StateCache* cache = nullptr) {
    options.capacity = capacity;
    return engine_.emplace(model_, tokenizer_, cache, stream_, options);
  }
  std::shared_ptr<Record> submit(Job job) {
    auto record = std::make_shared<Record>();
    tickets_.push_back(engine_->submit(std::move(job), record));
    return record;
  }
  void run() {
    while (engine_->step()) {
    }
  }
  static Job job(const std::string& prompt, std::int64_t count, std::uint64_t seed = 0) {
    Job asked;
    asked.prompt = mamba::Tokenizer::bytes().encode(prompt);
    asked.max_tokens = count;
    if (seed > 0) asked.sampling = lively(seed);
    return asked;
  }
  Ids alone(const Job& job) const {
    mamba::Generator generator(model_, job.sampling);
    generator.read(job.prompt);
    mamba::GenerateOptions options = options_of(job, tokenizer_);
    return generator.generate(options).tokens;
  }

  mamba::LanguageModel model_;
  mamba::Tokenizer tokenizer_ = mamba::Tokenizer::bytes();
  mamba::Stream stream_{mamba::Device::cpu(), 1};
  std::optional<Engine> engine_;
  std::vector<Engine::Ticket> tickets_;
};

TEST_F(EngineTest, AnswersAreThoseOfOneAlone) {
  for (const std::int64_t capacity : {1, 3, 16}) {
    SCOPED_TRACE(capacity);
    engine(capacity);
    std::vector<std::pair<Job, std::shared_ptr<Record>>> asked;
    for (int i = 0; i < 12; ++i) {
      const Job one =
          job(std::string(1 + 40 * i, 'a') + "The state", i * 3, static_cast<std::uint64_t>(i % 3));
      asked.emplace_back(one, submit(one));
    }
    EXPECT_EQ(engine_->counts().waiting, 12);
    run();
    for (auto& [one, record] : asked) {
      const Told& told = record->choices.at(0);
      ASSERT_TRUE(told.end) << told.error;
      EXPECT_EQ(told.ids, alone(one));
      EXPECT_EQ(told.text, whole_text(tokenizer_, told.ids));
      EXPECT_EQ(told.end->read, static_cast<std::int64_t>(one.prompt.size()));
      EXPECT_EQ(told.end->written, one.max_tokens);
      EXPECT_EQ(told.end->reason, Finish::max_tokens);
      for (std::size_t i = 0; i < told.positions.size(); ++i) {
        EXPECT_EQ(told.positions[i], static_cast<std::int64_t>(one.prompt.size() + i));
      }
    }
    EXPECT_EQ(engine_->room(), capacity);
  }
}

TEST_F(EngineTest, ALongPromptStopsNobodyFromWriting) {
  engine(4);
  const auto writer = submit(job("The", 100000));
  for (int i = 0; i < 5; ++i) engine_->step();
  const auto other = submit(job(std::string(12000, 'b'), 1));
  const auto third = submit(job(std::string(12000, 'c'), 1));
  const auto small = submit(job("small", 1));
  const std::size_t before = writer->choices.at(0).ids.size();
  std::size_t small_at = 0;
  while (!third->prompt) {
    engine_->step();
    if (small->prompt && small_at == 0) small_at = writer->choices.at(0).ids.size();
  }
  EXPECT_GT(writer->choices.at(0).ids.size() - before, 2 * 12000u / 1024);
  EXPECT_LT(small_at - before, 5u) << "whoever comes behind two long prompts has his turn";
}

TEST_F(EngineTest, WhoeverIsCancelledEndsAlone) {
  engine(2);
  const Job honest = job("The state", 20, 5);
  const auto gone = submit(job("A", 100000));
  const auto stays = submit(honest);
  const auto waits = submit(job("B", 5));
  const auto last = submit(honest);
  for (int i = 0; i < 4; ++i) engine_->step();
  engine_->cancel(tickets_[0]);
  engine_->cancel(tickets_[2]);
  engine_->cancel(tickets_[2]);
  run();
  EXPECT_EQ(gone->choices.at(0).end->reason, Finish::cancelled);
  EXPECT_EQ(waits->choices.at(0).end->reason, Finish::cancelled);
  EXPECT_EQ(waits->choices.at(0).ids.size(), 0u);
  EXPECT_EQ(stays->choices.at(0).ids, alone(honest));
  EXPECT_EQ(last->choices.at(0).ids, alone(honest));
  engine_->cancel(tickets_[3]);  // is over
  EXPECT_FALSE(engine_->step());
  EXPECT_EQ(engine_->room(), 2);
}

TEST_F(EngineTest, AnInterruptEndsEveryChoice) {
  engine(2);
  Job several = job("A", 1000);
  several.choices = 3;
  const auto first = submit(several);
  const auto second = submit(job("B", 1000));
  const auto third = submit(several);
  for (int i = 0; i < 4; ++i) engine_->step();
  engine_->interrupt();
  for (const auto& record : {first, third}) {
    ASSERT_EQ(record->choices.size(), 3u);
    for (const auto& [choice, told] : record->choices) {
      EXPECT_EQ(told.end->reason, Finish::cancelled) << choice;
    }
  }
  EXPECT_EQ(second->choices.at(0).end->reason, Finish::cancelled);
  EXPECT_FALSE(engine_->step());
  EXPECT_EQ(engine_->room(), 2);
}

class PoisonedEngineTest : public EngineTest {
 protected:
  PoisonedEngineTest() : EngineTest(poisoned_model(256, 'Z')) {}
};

TEST_F(PoisonedEngineTest, AFaultIsOfItsRequestAlone) {
  engine(4);
  const Job honest = job("The state", 20, 5);
  const auto before = submit(honest);
  const auto poisoned = submit(job("AZA", 20));
  Job two = job("AZA", 20);
  two.choices = 2;
  const auto both = submit(two);
  Job strange = job("A", 20);
  strange.prompt.push_back(256);
  strange.choices = 2;
  const auto refused = submit(strange);
  const auto after = submit(honest);
  run();
  EXPECT_EQ(before->choices.at(0).ids, alone(honest));
  EXPECT_EQ(after->choices.at(0).ids, alone(honest));
  EXPECT_NE(poisoned->choices.at(0).error.find("finite"), std::string::npos)
      << poisoned->choices.at(0).error;
  EXPECT_EQ(both->choices.size(), 2u);
  EXPECT_NE(both->choices.at(1).error, "");
  for (const int choice : {0, 1}) {
    EXPECT_EQ(refused->choices.at(choice).error,
              "Engine: prompt: expected ids from 0 to 255, got 256");
  }
  EXPECT_EQ(engine_->room(), 4);
}

TEST_F(EngineTest, AFullQueueRefusesWithItsNumber) {
  EngineOptions options;
  options.queue = 2;
  engine(1, options);
  for (int i = 0; i < 3; ++i) submit(job("A", 2));
  Job two = job("A", 2);
  two.choices = 2;
  mamba::testing::expect_error<QueueFull>("expected room in the queue of 2 requests, got none",
                                          [&] { submit(two); });
  EXPECT_THROW(submit(job("A", 2)), QueueFull);
  run();
  const auto again = submit(two);
  run();
  EXPECT_EQ(again->ended, 2);
}

TEST_F(EngineTest, ChoicesReadTheirPromptOnceAndAreThoseOfTheirSeeds) {
  for (const std::int64_t capacity : {1, 2, 8}) {
    engine(capacity);
    Job several = job(std::string(300, 'x') + "The state", 25, 7);
    several.choices = 3;
    const auto record = submit(several);
    const auto other = submit(job("B", 3));
    run();
    EXPECT_EQ(engine_->counts().read, 309 + 1);
    ASSERT_EQ(record->choices.size(), 3u);
    for (const auto& [choice, told] : record->choices) {
      Job one = several;
      one.choices = 1;
      one.sampling.seed += static_cast<std::uint64_t>(choice);
      EXPECT_EQ(told.ids, alone(one)) << choice;
      EXPECT_EQ(told.end->read, 309);
    }
    EXPECT_EQ(other->choices.at(0).ids.size(), 3u);
  }
}

// The same seed in two halves is the text of one go, and what was kept never changes.
TEST_F(EngineTest, WhatIsKeptIsGoneOnFrom) {
  engine(2);
  const Job whole = job("The state", 40, 9);
  Job first = job("The state", 15, 9);
  first.keep = true;
  const auto begun = submit(first);
  run();
  const std::shared_ptr<const KeptText> kept = begun->choices.at(0).end->kept;
  ASSERT_TRUE(kept);
  EXPECT_EQ(kept->path.size(), 24u);
  EXPECT_EQ(kept->snapshot.tokens_seen(), 24);
  Ids text = begun->choices.at(0).ids;
  for (int again = 0; again < 2; ++again) {
    Job rest;
    rest.from = kept;
    rest.sampling = lively(9);
    rest.max_tokens = 25;
    rest.keep = true;
    const auto second = submit(rest);
    Job other = rest;
    other.prompt = tokenizer_.encode(" said");
    const auto branch = submit(other);
    run();
    Ids both = text;
    both.insert(both.end(), second->choices.at(0).ids.begin(), second->choices.at(0).ids.end());
    EXPECT_EQ(both, alone(whole));
    EXPECT_EQ(second->choices.at(0).positions.front(), 24);
    EXPECT_EQ(branch->choices.at(0).end->kept->path.size(), 24u + 5 + 25);
    EXPECT_EQ(branch->choices.at(0).end->read, 5);
  }
}

TEST_F(EngineTest, KnownBeginningsAreNotReadAgain) {
  mamba::StateCache cache(model_);
  EngineOptions options;
  options.keep_every = 8;
  engine(2, options, &cache);
  Job first = job(std::string(600, 'a'), 20, 3);
  first.keep = true;
  const auto begun = submit(first);
  run();
  EXPECT_EQ(begun->prompt->known, 0);
  const Ids path = begun->choices.at(0).end->kept->path;
  const auto known = [&](std::size_t count, std::shared_ptr<const KeptText> from) {
    Job back;
    back.prompt = Ids(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(count));
    back.from = std::move(from);
    back.look_for = true;
    back.max_tokens = 0;
    back.keep = true;
    const auto record = submit(back);
    run();
    const Told& told = record->choices.at(0);
    EXPECT_EQ(told.end->kept->path, back.prompt);
    EXPECT_EQ(told.end->kept->snapshot.tokens_seen(), static_cast<std::int64_t>(count));
    return record->prompt->known;
  };
  EXPECT_EQ(known(612, nullptr), 608);
  EXPECT_EQ(known(612, nullptr), 612) << "that is known now";
  EXPECT_EQ(known(599, nullptr), 512);
  EXPECT_EQ(known(620, begun->choices.at(0).end->kept), 620);
}

TEST_F(EngineTest, AStopStringIsNoPartOfTheTextUnlessAsked) {
  engine(4);
  Job plain = job("The state", 40);
  const std::string text = tokenizer_.decode(alone(plain));
  const std::string stop = text.substr(10, 4);
  const std::size_t at = text.find(stop);
  Job stopped = plain;
  stopped.stop = {"never", stop, stop.substr(0, 3) + "~"};
  const auto without = submit(stopped);
  stopped.stop_in_text = true;
  const auto with = submit(stopped);
  Job unfinished = plain;
  unfinished.stop = {text.substr(36) + "~"};  // has begun where the text ends
  const auto held = submit(unfinished);
  run();
  EXPECT_EQ(without->choices.at(0).text, text.substr(0, at));
  EXPECT_EQ(without->choices.at(0).end->reason, Finish::stop);
  EXPECT_EQ(without->choices.at(0).ids.size(), at + 4);
  EXPECT_EQ(with->choices.at(0).text, text.substr(0, at + 4));
  EXPECT_EQ(held->choices.at(0).text, text);
}

TEST(StopTrimTest, GivesOutWhatCannotBecomeAStop) {
  StopTrim trim({"abc", "bd"});
  EXPECT_EQ(trim.push("xa"), "x");
  EXPECT_EQ(trim.push("b"), "");
  EXPECT_EQ(trim.push("x"), "abx");
  EXPECT_EQ(trim.push("ab"), "");
  EXPECT_EQ(trim.push("d"), "a") << "bd, not abc";
  EXPECT_EQ(trim.finish(true), "");
  EXPECT_EQ(trim.push("b"), "");
  EXPECT_EQ(trim.finish(false), "b");
  StopTrim longer({"abcd", "bc"});
  EXPECT_EQ(longer.push("xabc"), "x");
  EXPECT_EQ(longer.finish(true), "a") << "bc, and abcd had only begun";
}

TEST_F(EngineTest, LogProbabilitiesAreTheGenerators) {
  engine(2);
  Job scored = job(std::string(70, 'a') + "The state of", 6, 4);
  scored.log_probs = 3;
  scored.score_prompt = true;
  const auto record = submit(scored);
  const auto other = submit(job("A", 30));
  run();
  mamba::Generator generator(model_, scored.sampling);
  generator.read(scored.prompt);
  mamba::GenerateOptions options = options_of(scored, tokenizer_);
  const mamba::Generated expected = generator.generate(options);
  const Told& told = record->choices.at(0);
  ASSERT_EQ(told.log_probs.size(), 6u);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(told.log_probs[i].chosen, expected.log_probs[i].chosen, 1e-4);
    ASSERT_EQ(told.log_probs[i].top.size(), 3u);
    EXPECT_EQ(told.log_probs[i].top[0].token, expected.log_probs[i].top[0].token);
  }
  // A token of the prompt, as if it had been the only one allowed.
  const std::vector<mamba::LogProbs>& scores = record->prompt->scores;
  ASSERT_EQ(scores.size(), scored.prompt.size() - 1);
  for (const std::size_t at : {std::size_t{1}, std::size_t{65}, scored.prompt.size() - 1}) {
    mamba::SamplingOptions only;
    only.allowed = {scored.prompt[at]};
    mamba::Generator forced(model_, only);
    forced.read(Ids(scored.prompt.begin(), scored.prompt.begin() + static_cast<long>(at)));
    forced.next();
    const mamba::LogProbs want = forced.log_probs(3);
    EXPECT_NEAR(scores[at - 1].chosen, want.chosen, 1e-4) << at;
    ASSERT_EQ(scores[at - 1].top.size(), 3u);
    EXPECT_EQ(scores[at - 1].top[0].token, want.top[0].token);
  }
}

TEST_F(EngineTest, ThreadsAskAndCancelWhileItRuns) {
  engine(3);
  std::thread runner([&] { engine_->run(); });
  const Job honest = job("The state", 12, 5);
  std::vector<std::vector<std::shared_ptr<Record>>> records(3);
  std::vector<std::thread> askers;
  for (auto& own : records) {
    askers.emplace_back([&] {
      for (int i = 0; i < 30; ++i) {
        auto record = std::make_shared<Record>();
        own.push_back(record);
        engine_->submit(honest, record);
        auto gone = std::make_shared<Record>();
        const Engine::Ticket ticket = engine_->submit(job("A", 100000), gone);
        engine_->cancel(ticket);
        while (gone->ended == 0) std::this_thread::yield();
      }
    });
  }
  for (std::thread& asker : askers) asker.join();
  engine_->stop();
  runner.join();  // once all is done
  const Ids expected = alone(honest);
  for (const auto& own : records) {
    for (const auto& record : own) EXPECT_EQ(record->choices.at(0).ids, expected);
  }
  EXPECT_EQ(engine_->room(), 3);
}

}  // namespace
}  // namespace server
