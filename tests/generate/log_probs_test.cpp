// The log-probabilities of chosen tokens, held against a softmax in double of the logits that
// another generator has before each token.
#include <mamba/generator.hpp>

#include <algorithm>
#include <cmath>
#include <new>

#include <mamba/speculative.hpp>

#include "core/allocations.hpp"
#include "each.hpp"
#include "generate/texts.hpp"
#include "host/generate/generator_slots.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bytes_model;
using testing::expect_error;
using testing::golden_folder;
using testing::Ids;
using testing::lively;
using testing::prompt;

GenerateOptions tokens(std::int64_t count, std::optional<std::int64_t> log_probs = std::nullopt) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  options.log_probs = log_probs;
  return options;
}

std::vector<double> softmax_logs(const ConstTensorView& logits) {
  std::vector<double> values = testing::values(logits);
  double sum = 0;
  for (const double value : values) sum += std::exp(value);
  for (double& value : values) value -= std::log(sum);
  return values;
}

// `got` is what the model says of `text` after the prompt, up to `bound`.
void expect_log_probs(const LanguageModel& model, const Ids& text, const std::vector<LogProbs>& got,
                      std::size_t top, double bound) {
  ASSERT_EQ(got.size(), text.size());
  Generator reader(model);
  reader.read(prompt);
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::vector<double> expected = softmax_logs(reader.logits());
    EXPECT_NEAR(got[i].chosen, expected[static_cast<std::size_t>(text[i])], bound);
    ASSERT_EQ(got[i].top.size(), top);
    std::vector<double> sorted = expected;
    std::sort(sorted.rbegin(), sorted.rend());
    for (std::size_t k = 0; k < top; ++k) {
      const TokenLogProb& one = got[i].top[k];
      EXPECT_NEAR(one.log_prob, sorted[k], bound) << "place " << k;
      EXPECT_NEAR(one.log_prob, expected[static_cast<std::size_t>(one.token)], bound);
    }
    reader.read({text[i]});
  }
}

TEST_EACH(LogProbsTest, AreTheModelsOwn, Device device) {
  const LanguageModel model = bytes_model(device);
  for (const SamplingOptions& sampling : {SamplingOptions{}, lively(3)}) {
    Generator plain(model, sampling), told(model, sampling);
    plain.read(prompt);
    told.read(prompt);
    const Generated without = plain.generate(tokens(20));
    const Generated with = told.generate(tokens(20, 5));
    EXPECT_EQ(with.tokens, without.tokens);
    EXPECT_TRUE(without.log_probs.empty());
    expect_log_probs(model, with.tokens, with.log_probs, 5, 1e-4);
    EXPECT_EQ(told.generate(tokens(5)).tokens, plain.generate(tokens(5)).tokens);
  }
}

TEST_EACH(LogProbsTest, OfAGroupOnlyWhoAsksIsTold, Device device) {
  const LanguageModel model = bytes_model(device);
  GeneratorPool pool(model, 3);
  GeneratorAccess::slots(pool).ahead = true;
  Generator a = pool.make(lively(1)), b = pool.make(), c = pool.make(lively(2));
  Generator::read({&a, &b, &c}, {prompt, {1, 2}, prompt});
  const std::vector<Generated> texts =
      Generator::generate({&c, &b, &a}, {tokens(9, 2), tokens(12), tokens(6, 0)});
  expect_log_probs(model, texts[0].tokens, texts[0].log_probs, 2, 1e-4);
  EXPECT_TRUE(texts[1].log_probs.empty());
  expect_log_probs(model, texts[2].tokens, texts[2].log_probs, 0, 1e-4);
}

TEST_EACH(LogProbsTest, ACallbackThatTakesAnotherMemberFurtherChangesNone, Device device) {
  const LanguageModel model = bytes_model(device);
  GeneratorPool pool(model, 2);
  Generator first = pool.make(lively(1));
  Generator second = pool.make(lively(2));
  Generator::read({&first, &second}, {prompt, prompt});
  std::vector<GenerateOptions> options{tokens(4), tokens(4, 0)};
  options[0].on_token = [&](std::int32_t) {
    second.snapshot();  // its chosen token goes through the model
    return true;
  };
  const std::vector<Generated> results = Generator::generate({&first, &second}, options);
  expect_log_probs(model, results[1].tokens, results[1].log_probs, 0, 1e-4);
}

// The log-probabilities are computed after all members' tokens are chosen: whose memory runs out
// there or elsewhere, every token is in its member's results or still to come.
TEST(LogProbsTest, AnErrorOfOneMembersCostsNoOtherItsToken) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"));
  Stream stream(Device::cpu(), 1);
  const auto begun = [&](GeneratorPool& pool) {
    std::vector<Generator> members;
    for (std::uint64_t seed = 1; seed <= 3; ++seed) members.push_back(pool.make(lively(seed)));
    Generator::read({&members[0], &members[1], &members[2]}, {prompt, prompt, prompt});
    return members;
  };
  std::vector<Ids> wanted;
  {
    GeneratorPool pool(model, 3, stream);
    for (Generator& member : begun(pool)) wanted.push_back(member.generate(tokens(8)).tokens);
  }
  bool failed = true;
  std::vector<int> alone(3);  // how often a member's error was the only one
  for (long n = 1; failed; ++n) {
    SCOPED_TRACE("allocation " + std::to_string(n));
    GeneratorPool pool(model, 3, stream);
    std::vector<Generator> members = begun(pool);
    const Generator::Group group{&members[0], &members[1], &members[2]};
    const std::vector<GenerateOptions> options{tokens(3, 2)};
    std::vector<Generated> results(3);
    {
      const testing::FailingAllocation failing(n);
      try {
        results = Generator::generate(group, options);
      } catch (const std::bad_alloc&) {  // before anything was chosen
      }
      failed = failing.failed();
    }
    std::size_t errors = 0;
    for (const Generated& result : results) errors += result.error != nullptr;
    for (std::size_t i = 0; i < 3; ++i) {
      Ids text = results[i].tokens;
      if (errors == 1 && results[i].error) ++alone[i];
      const Ids rest =
          members[i].generate(tokens(8 - static_cast<std::int64_t>(text.size()))).tokens;
      text.insert(text.end(), rest.begin(), rest.end());
      EXPECT_EQ(text, wanted[i]) << "member " << i;
    }
  }
  for (const int times : alone) EXPECT_GT(times, 0);
}

TEST_EACH(LogProbsTest, ALoopOfOnesOwnMayAskAfterEachToken, Device device) {
  const LanguageModel model = bytes_model(device);
  Generator generator(model, lively(4));
  generator.read(prompt);
  expect_error<ArgumentError>(
      "Generator::log_probs: token: expected one that was chosen last, and not with a draft, got "
      "none",
      [&] { generator.log_probs(); });
  Ids text;
  std::vector<LogProbs> said;
  for (int i = 0; i < 8; ++i) {
    text.push_back(generator.next());
    said.push_back(generator.log_probs(3));
  }
  expect_log_probs(model, text, said, 3, 1e-4);
  EXPECT_EQ(generator.log_probs(1000).top.size(), 256u) << "there are no more tokens";
  double sum = 0;
  for (const TokenLogProb& one : generator.log_probs(1000).top) {
    sum += std::exp(static_cast<double>(one.log_prob));
  }
  EXPECT_NEAR(sum, 1, 1e-5);
  EXPECT_THROW(generator.log_probs(-1), ArgumentError);
  generator.state();  // the token goes through the model
  EXPECT_THROW(generator.log_probs(), ArgumentError);
  expect_error<ArgumentError>("Generator::generate: log_probs: expected 0 to 2147483647, got -1",
                              [&] { generator.generate(tokens(1, -1)); });
}

TEST_EACH(LogProbsTest, WithADraftTheyAreTheTargets, Device device) {
  const LanguageModel model = bytes_model(device);
  const LanguageModel small = LanguageModel::random(model.config(), 5, DType::f32, model.device());
  for (const SamplingOptions& sampling : {SamplingOptions{}, lively(3)}) {
    for (const LanguageModel* helper : {&model, &small}) {  // all is taken, or nearly nothing
      Generator target(model, sampling), draft(*helper, sampling);
      Speculation speculation(target, draft, 3);
      speculation.read(prompt);
      const Generated text = speculation.generate(tokens(15, 4));
      expect_log_probs(model, text.tokens, text.log_probs, 4, 1e-4);
      EXPECT_THROW(target.log_probs(), ArgumentError) << "its own logits are of another place";
      target.next();
      target.log_probs();
    }
  }
}

}  // namespace
}  // namespace mamba
