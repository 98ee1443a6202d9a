// Several tokens for one run of the model, and not one of them another than without.
#include <mamba/speculative.hpp>

#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>

#include <mamba/config.hpp>
#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "files.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::golden_folder;
using testing::TemporaryFolder;
using testing::values;

using Ids = std::vector<std::int32_t>;

Ids golden_ids(const std::string& folder, const char* name) {
  const SafetensorsFile file(golden_folder(folder) + "/golden.safetensors");
  const Tensor ids = file.read(file.entry(name));
  return Ids(ids.data<std::int32_t>(), ids.data<std::int32_t>() + ids.count());
}

GenerateOptions tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return options;
}

Ids joined(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// body(target, draft, whether the draft is the close one), for a draft that is nearly the target
// and for one that has nothing to do with it.
template <class Body>
void with_each_draft(Device device, Body body) {
  const LanguageModel target = LanguageModel::load(golden_folder("base"), DType::f32, device);
  const LanguageModel close = LanguageModel::load(golden_folder("base"), DType::bf16, device);
  const LanguageModel far = LanguageModel::load(golden_folder("sharded_bf16"), DType::f32, device);
  for (const LanguageModel* draft : {&close, &far}) {
    SCOPED_TRACE(draft == &close ? "close" : "far");
    body(target, *draft, draft == &close);
  }
}

TEST_EACH(SpeculationTest, GreedyTextIsThePublishedOne, Device device) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  const Ids text = golden_ids("base", "greedy_ids");
  with_each_draft(device,
                  [&](const LanguageModel& model, const LanguageModel& small, bool is_close) {
                    for (const std::int64_t proposals : {1, 2, 4, 7}) {
                      Generator target(model);
                      Generator draft(small);
                      Speculation speculation(target, draft, proposals);
                      speculation.read(prompt);
                      EXPECT_EQ(speculation.generate(tokens(24)).tokens, text) << proposals;
                      const SpeculationCounts& counts = speculation.counts();
                      EXPECT_EQ(counts.proposed, (counts.runs - 1) * proposals);
                      if (is_close) {
                        EXPECT_EQ(counts.accepted, counts.proposed);
                      } else {
                        EXPECT_LT(counts.accepted, counts.proposed / 2);
                      }
                    }
                  });
}

// Wherever it stops, both generators are where they would be without: in states, and in what they
// go on with.
TEST_EACH(SpeculationTest, StatesGoBackToTheLastTokenTaken, Device device) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  with_each_draft(device, [&](const LanguageModel& model, const LanguageModel& small, bool) {
    for (std::int64_t stop = 1; stop < 14; ++stop) {
      Generator target(model);
      Generator draft(small);
      Speculation speculation(target, draft, 3);
      speculation.read(prompt);
      const Ids text = speculation.generate(tokens(stop)).tokens;
      for (Generator* generator : {&target, &draft}) {
        Generator plain(generator->model());
        plain.read(joined(prompt, text));
        EXPECT_EQ(generator->tokens_seen(), plain.tokens_seen());
        const double bound = generator == &target ? 1e-5 : 9 * testing::roundoff(DType::bf16);
        EXPECT_LE(testing::relative_error(values(generator->logits()), values(plain.logits())),
                  bound)
            << "stopped after " << stop;
        EXPECT_LE(testing::relative_error(values(generator->state().layers[1].ssm),
                                          values(plain.state().layers[1].ssm)),
                  bound);
        EXPECT_EQ(generator->tokens_seen(), plain.tokens_seen());
      }
      const Ids more = target.generate(tokens(5)).tokens;  // without help
      draft.read(more);
      target.next();
      expect_error<ArgumentError>("Speculation: draft: expected " +
                                      std::to_string(target.tokens_seen()) + " tokens seen, got " +
                                      std::to_string(draft.tokens_seen()),
                                  [&] { speculation.next(); });
    }
  });
}

TEST_EACH(SpeculationTest, EndsWhereAGeneratorWould, Device device) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  const Ids text = golden_ids("base", "greedy_ids");
  with_each_draft(device, [&](const LanguageModel& model, const LanguageModel& small, bool) {
    Generator target(model);
    Generator draft(small);
    Speculation speculation(target, draft, 4);
    speculation.read(prompt);
    GenerateOptions options = tokens(24);
    Ids streamed;
    options.on_token = [&](std::int32_t token) {
      streamed.push_back(token);
      return streamed.size() != 7;
    };
    Generated part = speculation.generate(options);
    EXPECT_EQ(part.reason, StopReason::callback);
    EXPECT_EQ(part.tokens, Ids(text.begin(), text.begin() + 7));
    options.on_token = [](std::int32_t) -> bool { throw std::runtime_error("the caller's own"); };
    EXPECT_THROW(speculation.generate(options), std::runtime_error);
    options.on_token = nullptr;
    options.max_tokens = 16;
    EXPECT_EQ(speculation.generate(options).tokens, Ids(text.begin() + 8, text.end()))
        << "what the callback heard was chosen; the text goes on after it";
  });
}

// With a draft and without, the text ends with the same token, for this reason, and goes on alike.
void expect_same_end(const LanguageModel& model, const LanguageModel& small,
                     const GenerateOptions& options, StopReason reason) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  Generator plain(model);
  plain.read(prompt);
  const Generated expected = plain.generate(options);
  ASSERT_EQ(expected.reason, reason);
  std::string streamed;
  GenerateOptions heard = options;
  if (options.tokenizer != nullptr) {
    heard.on_text = [&](std::string_view piece) {
      streamed += piece;
      return true;
    };
  }
  Generator target(model);
  Generator draft(small);
  Speculation speculation(target, draft, 3);
  speculation.read(prompt);
  const Generated got = speculation.generate(heard);
  EXPECT_EQ(got.tokens, expected.tokens);
  EXPECT_EQ(got.reason, reason);
  if (options.tokenizer != nullptr) {
    EXPECT_EQ(streamed, options.tokenizer->decode(expected.tokens));
  }
  EXPECT_EQ(speculation.generate(tokens(3)).tokens, plain.generate(tokens(3)).tokens);
}

// An end of text that is every token in turn comes at every place of a run: proposed and taken, in
// place of a proposal, after the last one.
TEST_EACH(SpeculationTest, EndOfTextEndsItWhereAGeneratorEnds, Device device) {
  const Ids text = golden_ids("base", "greedy_ids");
  GenerateOptions options = tokens(24);
  options.ignore_eos = false;
  with_each_draft(device, [&](const LanguageModel& model, const LanguageModel& small, bool) {
    const TemporaryFolder folder;
    model.save(folder.file("model"));
    for (std::size_t end = 0; end < text.size(); ++end) {
      SCOPED_TRACE(end);
      LanguageModelConfig config = model.config();
      config.eos_token_ids = {text[end]};
      testing::write_file(folder.file("model/config.json"), to_json(config));
      const LanguageModel ending =
          LanguageModel::load(folder.file("model"), DType::f32, model.device());
      expect_same_end(ending, small, options, StopReason::eos);
    }
  });
}

TEST_EACH(SpeculationTest, AStopStringEndsItWhereAGeneratorEnds, Device device) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const std::string all = tokenizer.decode(golden_ids("base", "greedy_ids"));
  with_each_draft(device, [&](const LanguageModel& model, const LanguageModel& small, bool) {
    for (std::size_t length : {std::size_t{1}, std::size_t{4}}) {
      for (std::size_t first = 0; first + length <= all.size(); ++first) {
        SCOPED_TRACE(first);
        GenerateOptions options = tokens(24);
        options.tokenizer = &tokenizer;
        options.stop = {"not in the text", all.substr(first, length)};
        expect_same_end(model, small, options, StopReason::stop_string);
      }
    }
  });
}

TEST_EACH(SpeculationTest, ASavedTextGoesOnWithTheSameRandomNumbers, Device device) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  SamplingOptions lively;
  lively.temperature = 1.3f;
  lively.top_p = 0.95f;
  lively.repetition_penalty = 1.2f;
  lively.seed = 11;
  with_each_draft(device, [&](const LanguageModel& model, const LanguageModel& small, bool) {
    const TemporaryFolder folder;
    Generator target(model, lively);
    Generator draft(small, lively);
    Speculation speculation(target, draft, 3);
    speculation.read(prompt);
    std::vector<Ids> runs;
    for (int i = 0; i < 8; ++i) runs.push_back(speculation.next());

    Generator first(model, lively);
    Generator helper(small, lively);
    Speculation before(first, helper, 3);
    before.read(prompt);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(before.next(), runs[static_cast<std::size_t>(i)]);
    // A file holds no token that has not been seen: both go on from the same place.
    first.save(folder.file("target"));
    helper.save(folder.file("draft"));
    Generator second = Generator::restore(folder.file("target"), model);
    Generator again = Generator::restore(folder.file("draft"), small);
    Speculation after(second, again, 3);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(after.next(), before.next());
    EXPECT_EQ(second.tokens_seen(), first.tokens_seen());
  });
}

// In 16 bits another number of rows may round otherwise. A token is then not the best of a run
// without help, but as good as rounding can tell. The draft that is often wrong shows that its
// proposals are judged.
TEST_EACH(SpeculationTest, GreedyTokensIn16BitsAreBestUpToRounding, Device device,
          testing::OneOf<DType::bf16, DType::f16> dtype) {
  const Ids prompt = golden_ids("base", "prompt_ids");
  int differing = 0;
  const LanguageModel model = LanguageModel::load(golden_folder("base"), dtype, device);
  for (const char* helper : {"base", "sharded_bf16"}) {
    SCOPED_TRACE(helper);
    const LanguageModel small = LanguageModel::load(golden_folder(helper), DType::f32, device);
    Generator target(model);
    Generator draft(small);
    Speculation speculation(target, draft, 5);
    speculation.read(prompt);
    const Ids text = speculation.generate(tokens(60)).tokens;
    const SpeculationCounts& counts = speculation.counts();
    if (std::string(helper) == "base") {
      EXPECT_GT(counts.accepted, counts.proposed / 2);
    } else {
      EXPECT_LT(counts.accepted, counts.proposed / 2);
    }
    Generator plain(model);
    plain.read(prompt);
    for (const std::int32_t token : text) {
      const std::vector<double> logits = values(plain.logits());
      const auto best = std::max_element(logits.begin(), logits.end());
      const double norm =
          std::sqrt(std::inner_product(logits.begin(), logits.end(), logits.begin(), 0.0));
      // Each of the two runs is within 9 roundoffs of the exact one (golden_test.cpp).
      EXPECT_LE(*best - logits[static_cast<std::size_t>(token)],
                2 * 9 * testing::roundoff(dtype) * norm);
      differing += best - logits.begin() == token ? 0 : 1;
      plain.read({token});
    }
  }
  RecordProperty("tokens that differ from a run without help", differing);
}

// ---- sampling -----------------------------------------------------------------------------------

// Of each token by the rules of Sample, straightforwardly.
std::vector<double> odds_of(const std::vector<double>& logits, const Ids& seen,
                            const SamplingOptions& options) {
  const std::size_t vocab = logits.size();
  std::vector<double> adjusted = logits;
  for (std::size_t i = 0; i < vocab; ++i) {
    if (std::find(seen.begin(), seen.end(), static_cast<std::int32_t>(i)) == seen.end()) continue;
    const double penalty = options.repetition_penalty;
    adjusted[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
  std::vector<std::pair<double, std::size_t>> ranked;
  for (std::size_t i = 0; i < vocab; ++i) ranked.emplace_back(-adjusted[i], i);
  std::sort(ranked.begin(), ranked.end());
  if (options.top_k > 0) ranked.resize(std::min(vocab, static_cast<std::size_t>(options.top_k)));
  std::vector<double> odds(vocab, 0);
  double total = 0;
  for (const auto& [value, id] : ranked) {
    total += odds[id] = std::exp((ranked[0].first - value) / options.temperature);
  }
  double passed = 0;
  double kept = 0;
  for (const auto& [value, id] : ranked) {
    const bool in_top = passed < options.top_p * total;
    passed += odds[id];
    if (!in_top || odds[id] < options.min_p) odds[id] = 0;
    kept += odds[id];
  }
  for (double& value : odds) value /= kept;
  return odds;
}

// The probability of every text of `length` tokens, exactly.
void texts_after(Generator& generator, const Ids& seen, const Ids& text, double odds, int length,
                 std::map<Ids, double>& result) {
  if (length == 0) {
    result[text] = odds;
    return;
  }
  const std::vector<double> next = odds_of(values(generator.logits()), seen, generator.options());
  for (std::size_t id = 0; id < next.size(); ++id) {
    if (next[id] == 0) continue;
    Generator branch = generator.fork();
    const auto token = static_cast<std::int32_t>(id);
    branch.read({token});
    texts_after(branch, joined(seen, {token}), joined(text, {token}), odds * next[id], length - 1,
                result);
  }
}

// (sum of squares - degrees of freedom) in standard deviations, over texts expected at least five
// times; the rest are one class.
double chi_square_excess(const std::map<Ids, double>& odds, const std::map<Ids, int>& counted,
                         int trials) {
  double sum = 0;
  double rest = 0;
  int rest_counted = trials;
  int classes = 0;
  for (const auto& [text, probability] : odds) {
    const double expected = probability * trials;
    if (expected < 5) {
      rest += expected;
      continue;
    }
    const auto found = counted.find(text);
    const int count = found == counted.end() ? 0 : found->second;
    sum += (count - expected) * (count - expected) / expected;
    rest_counted -= count;
    ++classes;
  }
  if (rest > 5) {
    sum += (rest_counted - rest) * (rest_counted - rest) / rest;
    ++classes;
  }
  EXPECT_GT(classes, 20);
  return (sum - (classes - 1)) / std::sqrt(2.0 * (classes - 1));
}

TEST_EACH(SpeculationTest, SampledTextHasTheTargetsDistribution, Device device) {
  LanguageModelConfig config;
  config.layer.d_model = 8;
  config.layer.d_state = 4;
  config.n_layer = 1;
  config.vocab_size = 6;
  SamplingOptions plain;
  plain.temperature = 0.08f;  // fresh weights say little: sharpened, p and q differ
  SamplingOptions cut;
  cut.temperature = 0.08f;
  cut.top_k = 5;
  cut.top_p = 0.97f;
  cut.min_p = 0.02f;
  cut.repetition_penalty = 1.5f;
  constexpr int trials = 6000;
  const LanguageModel model = LanguageModel::random(config, 1, DType::f32, device);
  const LanguageModel small = LanguageModel::random(config, 2, DType::f32, device);
  for (const SamplingOptions& options : {plain, cut}) {
    SCOPED_TRACE(device.name() + (options == plain ? ", all" : ", cut"));
    const Ids prompt{1, 4, 2};
    Generator target(model, options);
    Generator draft(small, options);
    target.read(prompt);
    draft.read(prompt);
    std::map<Ids, double> odds;
    texts_after(target, prompt, {}, 1, 4, odds);
    std::map<Ids, int> counted;
    SpeculationCounts counts;
    for (int trial = 0; trial < trials; ++trial) {
      Generator t = target.fork();
      Generator d = draft.fork();
      t.reseed(static_cast<std::uint64_t>(trial));
      Speculation speculation(t, d, 2);
      ++counted[speculation.generate(tokens(4)).tokens];
      counts.proposed += speculation.counts().proposed;
      counts.accepted += speculation.counts().accepted;
    }
    EXPECT_LT(chi_square_excess(odds, counted, trials), 4);
    EXPECT_GT(counts.accepted, counts.proposed / 10);
    EXPECT_LT(counts.accepted, counts.proposed * 9 / 10);
  }
}

// ---- errors -------------------------------------------------------------------------------------

TEST_EACH(SpeculationTest, RefusesWhatCannotWork, Device device) {
  const LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32, device);
  const LanguageModel other = LanguageModel::load(golden_folder("bytes"), DType::f32, device);
  Generator target(model);
  Generator draft(model);
  Generator stranger(other);
  expect_error<ArgumentError>(
      "Speculation: draft: expected a model with 96 tokens, got one with 256",
      [&] { Speculation(target, stranger); });
  expect_error<ArgumentError>("Speculation: draft: expected another generator, got the target",
                              [&] { Speculation(target, target); });
  expect_error<ArgumentError>("Speculation: proposals: expected 1 to 64, got 0",
                              [&] { Speculation(target, draft, 0); });
  GeneratorPool pool(model, 2);
  Generator member = pool.make();
  expect_error<ArgumentError>(
      "Speculation: target: expected a generator with a pool of its own, got one in a pool of 2",
      [&] { Speculation(member, draft); });
  target.read({1, 2});
  expect_error<ArgumentError>("Speculation: draft: expected 2 tokens seen, got 0",
                              [&] { Speculation(target, draft); });
  draft.read({1, 2});
  Speculation speculation(target, draft);
  GenerateOptions options;
  options.stop = {"x"};
  expect_error<ArgumentError>(
      "Generator::generate: tokenizer: expected one, to find stop strings with, got none",
      [&] { speculation.generate(options); });
}

}  // namespace
}  // namespace mamba
