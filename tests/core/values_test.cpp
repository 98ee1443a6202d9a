// What a value is after it was moved, copied, shown to others, or in the middle of an error.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include <mamba/mamba.hpp>

#include "each.hpp"
#include "host/generate/generator_slots.hpp"
#include "model/training_run.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::golden_folder;
using testing::TemporaryFolder;
using testing::TrainingRun;

using Ids = Generator::Ids;

// A view that stays may not be of a Tensor that goes; an argument may.
static_assert(!std::is_assignable_v<ConstTensorView&, Tensor>);
static_assert(!std::is_assignable_v<ConstTensorView&, const Tensor>);
static_assert(!std::is_assignable_v<TensorView&, Tensor>);
static_assert(std::is_assignable_v<ConstTensorView&, Tensor&>);
static_assert(std::is_assignable_v<ConstTensorView&, const Tensor&>);
static_assert(std::is_assignable_v<ConstTensorView&, TensorView>);
static_assert(std::is_assignable_v<TensorView&, Tensor&>);
static_assert(std::is_convertible_v<Tensor, ConstTensorView>);

template <class T, class = void>
struct HasView : std::false_type {};
template <class T>
struct HasView<T, std::void_t<decltype(std::declval<T>().view())>> : std::true_type {};
static_assert(HasView<Tensor&>::value && HasView<const Tensor&>::value);
static_assert(!HasView<Tensor>::value && !HasView<const Tensor>::value);

template <class Model, class Gradients, class = void>
struct HasParameters : std::false_type {};
template <class Model, class Gradients>
struct HasParameters<
    Model, Gradients,
    std::void_t<decltype(parameters(std::declval<Model&>(), std::declval<Gradients>()))>>
    : std::true_type {};
static_assert(HasParameters<Layer, LayerWeights&>::value);
static_assert(!HasParameters<Layer, LayerWeights>::value);
static_assert(!HasParameters<Stack, StackWeights>::value);
static_assert(!HasParameters<LanguageModel, LanguageModelWeights>::value);

TEST(Values, AnOperandCanBeSetBackToNone) {
  const Tensor tensor = Tensor::zeros({2}, DType::f32);
  ConstTensorView view = tensor;
  EXPECT_TRUE(view);
  view = {};
  EXPECT_FALSE(view);
}

TEST(Values, AMovedTensorIsAbsent) {
  Tensor a = Tensor::from<float>({1, 2}, {2});
  Tensor b = std::move(a);
  EXPECT_FALSE(a);
  EXPECT_EQ(a.bytes(), 0);
  EXPECT_EQ(a.shape(), Shape());
  EXPECT_TRUE(b);
  a = std::move(b);
  EXPECT_FALSE(b);
  EXPECT_EQ(a.data<float>()[1], 2);
  Tensor& same = a;
  a = std::move(same);
  EXPECT_EQ(a.data<float>()[1], 2);
  Stream stream;
  SumSquares op;
  op.x = b;
  op.y = a;
  expect_error<ArgumentError>("sum_squares: x: expected a tensor, got none",
                              [&] { run(op, stream); });
}

TEST(Values, AMovedTokenizerIsWhatItWas) {
  Tokenizer a = Tokenizer::load(golden_folder("tokenizer"));
  const std::int64_t size = a.vocab_size();
  const Tokenizer b = std::move(a);
  EXPECT_EQ(a.vocab_size(), size);
  EXPECT_EQ(b.vocab_size(), size);
}

// ---- weights ------------------------------------------------------------------------------------

TEST_EACH(Values, ReadingWeightsKeepsTheFingerprintAndChangingThemDoesNot, Device device) {
  LanguageModel model = LanguageModel::load(golden_folder("base"), DType::bf16, device);
  const std::string loaded = model.fingerprint();
  model.each_weight([](const std::string&, const Tensor&) {});
  EXPECT_EQ(model.fingerprint(), loaded);
  LanguageModelWeights gradients = zero_gradients(model.config(), device);
  AdamWOptions still;
  still.weight_decay = 0;
  AdamW optimizer(parameters(model, gradients), still);
  EXPECT_EQ(model.fingerprint(), loaded) << "no step was made";
  Tensor kept;
  model.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
    if (name == "backbone.norm_f.weight") {
      kept = tensor.clone();
      zero(tensor, default_stream(device));
    }
  });
  const std::string changed = model.fingerprint();
  EXPECT_NE(changed, loaded);
  model.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
    if (name == "backbone.norm_f.weight") copy(kept, tensor, default_stream(device));
  });
  EXPECT_EQ(model.fingerprint(), loaded) << "the same bytes as in the folder";
  LanguageModelWeights ones = zero_gradients(model.config(), device);
  for (TensorView view : tensors(ones, model.config())) {
    const Tensor filled = Tensor::from(
        std::vector<float>(static_cast<std::size_t>(view.count()), 1.0f), view.shape());
    copy(filled.to(device), view, default_stream(device));
  }
  AdamW learns(parameters(model, ones));
  learns.step(0.1f, default_stream(device));
  EXPECT_NE(model.fingerprint(), loaded);
}

TEST_EACH(Values, AStepOfGradientsThatAreNotFiniteDoesNotCount, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  TrainingRun training(dtype, device);
  training.step();
  EXPECT_EQ(training.optimizer.steps(), 1);
  Stream& stream = default_stream(device);
  const Tensor bad = Tensor::from<float>({std::numeric_limits<float>::infinity()}, {1});
  copy(bad, training.gradients.stack.norm_f.view().rows(0, 1), stream);
  training.optimizer.step(0.1f, stream);
  EXPECT_FALSE(std::isfinite(training.optimizer.gradient_norm(stream)));
  EXPECT_EQ(training.optimizer.steps(), 1);
  training.optimizer.gradient_norm(stream);
  EXPECT_EQ(training.optimizer.steps(), 1) << "it is taken back once";
  EXPECT_THROW(training.optimizer.step(-1, stream), ArgumentError);
  EXPECT_EQ(training.optimizer.steps(), 1) << "a step that was refused is none";
  training.optimizer.gradient_norm(stream);
  EXPECT_EQ(training.optimizer.steps(), 1);
  zero(training.gradients.stack.norm_f, stream);
  training.optimizer.step(0.1f, stream);
  EXPECT_EQ(training.optimizer.steps(), 2);
}

// ---- generation ---------------------------------------------------------------------------------

GenerateOptions tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return options;
}

// A state from which no logit is finite.
void poison(Generator& generator, GeneratorPool& pool, std::int64_t row) {
  GeneratorSlots& slots = GeneratorAccess::slots(pool);
  const Tensor nans = Tensor::from(std::vector<float>(static_cast<std::size_t>(slots.logits.dim(1)),
                                                      std::numeric_limits<float>::quiet_NaN()),
                                   {1, slots.logits.dim(1)});
  copy(nans, slots.logits.view().rows(row, 1), generator.stream());
  generator.stream().synchronize();
}

TEST_EACH(Values, ARowWithoutALogitLeavesTheOthersTheirTokens, Device device) {
  const LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32, device);
  const std::vector<Ids> prompts{{1, 2, 3}, {4, 5}, {6, 7, 8}};
  std::vector<Ids> expected;
  for (const Ids& prompt : prompts) {
    Generator alone(model);
    alone.read(prompt);
    expected.push_back(alone.generate(tokens(6)).tokens);
  }
  for (const bool by_next : {true, false}) {
    GeneratorPool pool(model, 3);
    std::vector<Generator> members;
    Generator::Group group;
    for (int i = 0; i < 3; ++i) members.push_back(pool.make());
    for (Generator& member : members) group.push_back(&member);
    Generator::read(group, prompts);
    poison(members[1], pool, 1);
    if (by_next) {
      const std::vector<Chosen> chosen = Generator::next(group);
      EXPECT_EQ(chosen[0].token, expected[0][0]);
      EXPECT_EQ(chosen[2].token, expected[2][0]);
      EXPECT_FALSE(chosen[0].error || chosen[2].error);
      EXPECT_EQ(chosen[1].token, -1);
      ASSERT_TRUE(chosen[1].error);
      EXPECT_THROW(std::rethrow_exception(chosen[1].error), ArgumentError);
      const auto rest = Generator::generate({&members[0], &members[2]}, {tokens(5)});
      EXPECT_EQ(rest[0].tokens, Ids(expected[0].begin() + 1, expected[0].end()));
      EXPECT_EQ(rest[1].tokens, Ids(expected[2].begin() + 1, expected[2].end()));
    } else {
      const std::vector<Generated> texts = Generator::generate(group, {tokens(6)});
      EXPECT_EQ(texts[0].tokens, expected[0]);
      EXPECT_EQ(texts[2].tokens, expected[2]);
      EXPECT_EQ(texts[0].reason, StopReason::max_tokens);
      EXPECT_FALSE(texts[0].error);
      EXPECT_TRUE(texts[1].tokens.empty());
      EXPECT_EQ(texts[1].reason, StopReason::error);
      ASSERT_TRUE(texts[1].error);
    }
    EXPECT_THROW(members[1].next(), ArgumentError);
    EXPECT_NO_THROW(members[0].stream().synchronize()) << "the error was told";
    EXPECT_EQ(members[0].tokens_seen(), 3 + 6);
    EXPECT_EQ(members[1].tokens_seen(), 2);
  }
}

TEST_EACH(Values, ACallbackThatThrowsLeavesTheOthersTheirTokens, Device device) {
  const LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32, device);
  GeneratorPool pool(model, 2);
  Generator a = pool.make(), b = pool.make();
  Generator::read({&a, &b}, {{1, 2}, {3, 4, 5}});
  Generator alone(model), thrower(model);
  alone.read({3, 4, 5});
  thrower.read({1, 2});
  const Ids expected = alone.generate(tokens(6)).tokens;
  const Ids of_a = thrower.generate(tokens(6)).tokens;
  std::vector<GenerateOptions> options{tokens(6), tokens(6)};
  int heard = 0;
  options[0].on_token = [&](std::int32_t) -> bool {
    if (++heard == 3) throw std::runtime_error("no more");
    return true;
  };
  const std::vector<Generated> texts = Generator::generate({&a, &b}, options);
  EXPECT_EQ(texts[1].tokens, expected);
  EXPECT_EQ(texts[0].tokens, Ids(of_a.begin(), of_a.begin() + 3));
  EXPECT_EQ(texts[0].reason, StopReason::error);
  ASSERT_TRUE(texts[0].error);
  EXPECT_THROW(std::rethrow_exception(texts[0].error), std::runtime_error);
  EXPECT_EQ(a.generate(tokens(3)).tokens, Ids(of_a.begin() + 3, of_a.end())) << "it goes on";
  heard = 2;
  EXPECT_THROW(a.generate(options[0]), std::runtime_error);
}

// One of the two has NaN for a norm, and with that for logits.
TEST_EACH(Values, SpeculationLeavesItsTwoTogetherAfterAnError, Device device) {
  for (const bool greedy : {true, false}) {
    for (const bool of_target : {true, false}) {
      LanguageModel good = LanguageModel::load(golden_folder("base"), DType::f32, device);
      LanguageModel bad = LanguageModel::load(golden_folder("base"), DType::f32, device);
      SamplingOptions sampling;
      if (!greedy) sampling.temperature = 0.8f;
      Generator target(of_target ? bad : good, sampling);
      Generator draft(of_target ? good : bad, sampling);
      Speculation pair(target, draft, 3);
      pair.read({1, 2, 3});
      Generator plain_target(good, sampling), plain_draft(good, sampling);
      Speculation plain(plain_target, plain_draft, 3);
      plain.read({1, 2, 3});
      for (int i = 0; i < 2; ++i) EXPECT_EQ(pair.next(), plain.next());
      Tensor kept;
      const auto replace = [&](bool broken) {
        bad.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
          if (name != "backbone.norm_f.weight") return;
          if (!kept) kept = tensor.clone();
          const Tensor nans =
              Tensor::from(std::vector<float>(static_cast<std::size_t>(tensor.count()),
                                              std::numeric_limits<float>::quiet_NaN()),
                           tensor.shape());
          copy(broken ? ConstTensorView(nans) : ConstTensorView(kept), tensor,
               default_stream(device));
          default_stream(device).synchronize();
        });
      };
      EXPECT_EQ(pair.next(), plain.next());
      const auto seen = target.tokens_seen();
      replace(true);
      EXPECT_THROW(pair.next(), ArgumentError) << greedy << of_target;
      EXPECT_EQ(target.tokens_seen(), seen);
      EXPECT_EQ(draft.tokens_seen(), seen);
      replace(false);
      for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(pair.next(), plain.next()) << greedy << of_target << ", run " << i;
      }
      EXPECT_EQ(target.tokens_seen(), draft.tokens_seen());
    }
  }
}

// ---- the cache ----------------------------------------------------------------------------------

TEST(Values, ACacheWithAFolderIsThereForTheNextProcess) {
  const LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32);
  const TemporaryFolder folder;
  CacheOptions options;
  options.folder = folder.file("cache");
  options.disk_bytes = std::int64_t{1} << 30;
  const Ids prompt{1, 2, 3, 4, 5};
  {
    StateCache cache(model, options);
    Generator generator(model);
    EXPECT_EQ(cache.read(generator, prompt), 0);
    EXPECT_EQ(cache.counts().disk_bytes, 0) << "there is room in memory";
  }
  {
    StateCache cache(model, options);
    Generator generator(model);
    EXPECT_EQ(cache.read(generator, prompt), 5);
    Generator another(model);
    cache.read(another, {9, 8, 7});
    cache.flush();  // as if this process were killed now
    StateCache meanwhile(model, options);
    Generator third(model);
    EXPECT_EQ(meanwhile.read(third, {9, 8, 7}), 3);
  }
}

TEST(Values, ACacheKeepsTheLastUsedInTheRoomOfItsFolder) {
  const LanguageModel model = LanguageModel::load(golden_folder("base"), DType::f32);
  const TemporaryFolder folder;
  CacheOptions options;
  options.folder = folder.file("cache");
  options.disk_bytes = std::int64_t{1} << 30;
  std::int64_t one = 0;
  {
    StateCache cache(model, options);
    Generator generator(model);
    cache.read(generator, {50, 51, 52});
    cache.flush();
    one = cache.counts().disk_bytes;
  }
  std::filesystem::remove_all(options.folder);
  options.disk_bytes = 2 * one + one / 2;
  {
    StateCache cache(model, options);
    for (std::int32_t first = 1; first <= 4; ++first) {
      Generator generator(model);
      cache.read(generator, {first, 9, 9});
    }
  }
  StateCache cache(model, options);
  for (std::int32_t first = 1; first <= 4; ++first) {
    Generator generator(model);
    EXPECT_EQ(cache.find(generator, {first, 9, 9}), first > 2 ? 3 : 0) << first;
  }
}

}  // namespace
}  // namespace mamba
