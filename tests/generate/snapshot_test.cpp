// A generation as a value: it outlives its generator, and whoever goes on from it writes what the
// original would have written.
#include <mamba/generator_snapshot.hpp>

#include <algorithm>
#include <memory>
#include <thread>

#include <mamba/generator.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/speculative.hpp>
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

GenerateOptions tokens(std::int64_t count) {
  GenerateOptions options;
  options.max_tokens = count;
  options.ignore_eos = true;
  return options;
}

Ids generate(Generator& generator, std::int64_t count) {
  return generator.generate(tokens(count)).tokens;
}

std::string text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Generator begun(const LanguageModel& model, const SamplingOptions& options, std::int64_t count) {
  Generator generator(model, options);
  generator.read(prompt);
  generate(generator, count);
  return generator;
}

TEST_EACH(SnapshotTest, GoesOnAsTheOriginalAfterItsEnd, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  for (const SamplingOptions& options : {SamplingOptions{}, lively(3)}) {
    Generator whole = begun(model, options, 13);
    const Ids text = generate(whole, 20);
    auto first = std::make_unique<Generator>(begun(model, options, 13));
    const GeneratorSnapshot snapshot = first->snapshot();
    EXPECT_EQ(generate(*first, 20), text) << "a snapshot disturbs nothing";
    first.reset();
    EXPECT_TRUE(snapshot.options() == options);
    EXPECT_EQ(snapshot.tokens_seen(), static_cast<std::int64_t>(prompt.size()) + 13);
    EXPECT_EQ(snapshot.fingerprint(), model.fingerprint());
    EXPECT_EQ(snapshot.device(), model.device());
    EXPECT_GT(snapshot.bytes(), snapshot.state().bytes());

    Stream stream(model.device(), 1);
    Generator own(model, snapshot), lent(model, snapshot, stream);
    EXPECT_EQ(&lent.stream(), &stream);
    for (Generator* second : {&own, &lent}) {
      EXPECT_TRUE(second->options() == options);
      EXPECT_EQ(second->tokens_seen(), snapshot.tokens_seen());
      EXPECT_EQ(bits(second->logits()), bits(snapshot.logits()));
      EXPECT_EQ(bits(second->state().layers[1].ssm), bits(snapshot.state().layers[1].ssm));
      EXPECT_EQ(generate(*second, 20), text);
    }
  }
}

TEST_EACH(SnapshotTest, JoinsAPoolAfterItsOwnHasGone, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  std::vector<GeneratorSnapshot> snapshots;
  std::vector<Ids> expected;
  {
    GeneratorPool pool(model, 4);
    Generator other = pool.make(lively(9));
    Generator trunk = pool.make(lively(4));
    Generator::read({&other, &trunk}, {{1, 2}, prompt});
    Generator::generate({&trunk, &other}, {tokens(5)});
    std::vector<Generator> forks = trunk.fork(2);
    for (Generator* member : {&trunk, &forks[0], &forks[1]}) {
      snapshots.push_back(member->snapshot());
      expected.push_back(generate(*member, 12));
    }
  }
  EXPECT_EQ(expected[0], expected[1]) << "the first fork goes on as its trunk";
  EXPECT_NE(expected[0], expected[2]);
  GeneratorPool pool(model, 4);
  Generator stranger = pool.make();
  stranger.read({7, 8, 9});
  std::vector<Generator> members;
  for (const GeneratorSnapshot& snapshot : snapshots) members.push_back(pool.make(snapshot));
  Generator::Group group{&members[2], &members[0], &stranger, &members[1]};
  const std::vector<Generated> texts = Generator::generate(group, {tokens(12)});
  if (model.dtype() == DType::f32) {  // in 16 bits a batch of other sizes rounds otherwise
    EXPECT_EQ(texts[0].tokens, expected[2]);
    EXPECT_EQ(texts[1].tokens, expected[0]);
    EXPECT_EQ(texts[3].tokens, expected[1]);
  }
  expect_error<ArgumentError>(
      "GeneratorPool::make: capacity: expected room for another sequence, got 4, all in use",
      [&] { pool.make(snapshots[0]); });
}

TEST_EACH(SnapshotTest, APlaceInAPoolIsLentOutMeanwhile, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  GeneratorPool pool(model, 1);
  Generator generator = pool.make(lively(5));
  generator.read(prompt);
  generate(generator, 4);
  const GeneratorSnapshot paused = generator.snapshot();
  const Ids rest = generate(generator, 15);
  { const Generator gone = std::move(generator); }
  {
    Generator other = pool.make(lively(6));
    other.read({1, 2, 3, 4});
    generate(other, 9);
  }
  generator = pool.make(paused);
  EXPECT_EQ(generate(generator, 15), rest);
}

TEST_EACH(SnapshotTest, BytesAreThoseOfTheFile, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const TemporaryFolder folder;
  Generator generator = begun(model, lively(3), 7);
  const GeneratorSnapshot snapshot = generator.snapshot();
  const Bytes bytes = snapshot.save();
  generator.save(folder.file("generator"));
  snapshot.save(folder.file("snapshot"));
  EXPECT_EQ(testing::read_file(folder.file("generator")), text_of(bytes));
  EXPECT_EQ(testing::read_file(folder.file("snapshot")), text_of(bytes));
  EXPECT_EQ(load_state(bytes).metadata.tokens_seen, std::vector<std::int64_t>{16});

  const Ids rest = generate(generator, 20);
  for (const GeneratorSnapshot& again :
       {GeneratorSnapshot::load(bytes), GeneratorSnapshot::load(folder.file("snapshot"))}) {
    EXPECT_EQ(again.device(), Device::cpu());
    EXPECT_EQ(text_of(again.save()), text_of(bytes));
    Generator second(model, again);
    EXPECT_EQ(generate(second, 20), rest);
  }
  Generator restored = Generator::restore(folder.file("snapshot"), model);
  EXPECT_EQ(generate(restored, 20), rest);
}

// A file that an earlier version wrote, in the middle of a character.
// With the seed of before, whoever goes on writes what one generation would have written.
TEST_EACH(SnapshotTest, GoesOnWithOtherOptions, MixerKind mixer, Device device) {
  const LanguageModel model = bytes_model(mixer, device, DType::f32);
  Generator whole = begun(model, lively(3), 13);
  const Ids text = generate(whole, 20);
  const GeneratorSnapshot snapshot = begun(model, SamplingOptions{}, 13).snapshot();
  Generator greedy(model, snapshot);
  const Ids greedy_text = generate(greedy, 20);

  Generator other = begun(model, lively(3), 13);
  other.set_options(SamplingOptions{});
  EXPECT_EQ(other.options(), SamplingOptions{});
  other.set_options(lively(3));
  EXPECT_EQ(generate(other, 20), text);

  Generator drawn(model, snapshot);
  drawn.set_options(lively(3));
  EXPECT_NE(generate(drawn, 20), greedy_text);
  SamplingOptions bad;
  bad.top_p = 2;
  EXPECT_THROW(drawn.set_options(bad), ArgumentError);
  EXPECT_EQ(drawn.options(), lively(3));
}

TEST(SnapshotTest, TensorsOfTheCallersLieBesideIt) {
  const LanguageModel model = bytes_model(MixerKind::mamba1, Device::cpu(), DType::f32);
  const GeneratorSnapshot snapshot = begun(model, lively(3), 5).snapshot();
  const Tensor ids = Tensor::from<std::int32_t>({4, 5, 6});
  Bytes bytes = snapshot.save({{"path.ids", ids}});
  EXPECT_EQ(load_state(bytes).extras.at("path.ids").to_vector<std::int32_t>(), (Ids{4, 5, 6}));
  const GeneratorSnapshot loaded = GeneratorSnapshot::load(bytes);
  EXPECT_EQ(text_of(loaded.save()), text_of(snapshot.save()));
  // They are part of what is believed.
  const SafetensorsFile file(bytes);
  bytes[static_cast<std::size_t>(file.entry("path.ids").offset)] ^= std::byte{1};
  EXPECT_THROW(GeneratorSnapshot::load(bytes), FormatError);
  for (const char* name : {"layers.0.conv", "generator.seen"}) {
    EXPECT_THROW((void)snapshot.save({{name, ids}}), ArgumentError) << name;
  }
}

TEST(SnapshotTest, AFileOfBeforeIsReadAndWrittenTheSame) {
  const std::string path = golden_folder("generation.safetensors");
  const GeneratorSnapshot snapshot = GeneratorSnapshot::load(path);
  EXPECT_EQ(text_of(snapshot.save()), testing::read_file(path));
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"));
  EXPECT_EQ(text_of(Generator(model, snapshot).snapshot().save()), testing::read_file(path));
  EXPECT_EQ(Generator::restore(path, model).finish_text(), "\xEF\xBF\xBD");
}

TEST_EACH(SnapshotTest, HalfACharacterGoesAlong, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  const Tokenizer bytes = Tokenizer::bytes();
  std::string text;
  GenerateOptions options = tokens(60);
  options.tokenizer = &bytes;
  options.on_text = [&](std::string_view part) {
    text += part;
    return true;
  };
  SamplingOptions wild;  // all bytes, so that many begin characters
  wild.temperature = 30;
  wild.seed = 5;
  Generator reference(model, wild);
  reference.read(prompt);
  reference.generate(options);
  const std::string expected = text;

  text.clear();
  options.max_tokens = 1;
  Generator stopped(model, wild);
  stopped.read(prompt);
  int held = 0;
  for (int i = 0; i < 60; ++i) {
    stopped.generate(options);
    const GeneratorSnapshot snapshot = stopped.snapshot();
    stopped = i % 2 == 0 ? Generator(model, snapshot)
                         : Generator(model, GeneratorSnapshot::load(snapshot.save()));
    held += Generator(model, snapshot).finish_text().empty() ? 0 : 1;
  }
  EXPECT_EQ(text, expected);
  EXPECT_GT(held, 0) << "the text never stopped inside of a character: choose another seed";
}

TEST_EACH(SnapshotTest, ThreadsGoOnFromOneAtOnce, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  Generator generator = begun(model, lively(8), 6);
  const GeneratorSnapshot snapshot = generator.snapshot();
  const Ids rest = generate(generator, 15);
  std::vector<Ids> got(3);
  std::vector<std::thread> threads;
  for (Ids& text : got) {
    threads.emplace_back([&] {
      GeneratorPool pool(model, 1);
      Generator second = pool.make(snapshot.clone());
      text = generate(second, 15);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& text : got) EXPECT_EQ(text, rest);
}

TEST_EACH(SnapshotTest, TakesBackWhatWasWrittenSince, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(mixer, device, dtype);
  GeneratorPool pool(model, 1);
  Generator generator = pool.make(lively(2));
  generator.read(prompt);
  generate(generator, 3);
  const GeneratorSnapshot before = generator.snapshot();
  const Ids text = generate(generator, 10);
  generator.next();
  generator.copy_from(before);
  EXPECT_EQ(generator.tokens_seen(), before.tokens_seen());
  EXPECT_EQ(generate(generator, 10), text);
  generator.copy_from(before);
  EXPECT_EQ(text_of(generator.snapshot().save()), text_of(before.save()));
  generator.read({1, 2, 3});
  generator.reseed(7);
  generator.copy_from(before);
  EXPECT_EQ(generate(generator, 10), text);
}

TEST(SnapshotTest, ADraftGoesAlongWithItsTarget) {
  const LanguageModel model = LanguageModel::load(golden_folder("bytes"));
  const LanguageModel small = LanguageModel::random(model.config(), 5);
  Generator target(model, lively(1)), draft(small, lively(1));
  Speculation speculation(target, draft, 3);
  speculation.read(prompt);
  speculation.generate(tokens(6));
  const GeneratorSnapshot at = target.snapshot();
  const GeneratorSnapshot of_draft = draft.snapshot();
  const Ids text = speculation.generate(tokens(12)).tokens;
  target.copy_from(at);
  draft.copy_from(of_draft);
  EXPECT_EQ(speculation.generate(tokens(12)).tokens, text);
}

TEST_EACH(SnapshotTest, MovesBetweenDevices, Device from, Device to) {
  SamplingOptions options;
  options.repetition_penalty = 1.1f;
  const LanguageModel first = LanguageModel::load(golden_folder("bytes"), DType::f32, from);
  Generator generator = begun(first, options, 9);
  const GeneratorSnapshot snapshot = generator.snapshot(), taken_there = generator.snapshot(to);
  const Ids rest = generate(generator, 15);
  SCOPED_TRACE(from.name() + " to " + to.name());
  EXPECT_EQ(taken_there.device(), to);
  EXPECT_EQ(taken_there.state().device(), to);
  EXPECT_EQ(text_of(taken_there.save()), text_of(snapshot.save()));
  const LanguageModel second = LanguageModel::load(golden_folder("bytes"), DType::f32, to);
  const GeneratorSnapshot moved = snapshot.to(to);
  EXPECT_EQ(moved.device(), to);
  EXPECT_EQ(text_of(moved.save()), text_of(snapshot.save()));
  Generator straight(second, snapshot), there(second, moved), continued(second, options);
  EXPECT_EQ(generate(straight, 15), rest);
  EXPECT_EQ(generate(there, 15), rest);
  continued.continue_from({1}, snapshot.state(), snapshot.logits());
  EXPECT_EQ(continued.logits().to_vector<float>(), snapshot.logits().to_vector<float>());
  EXPECT_EQ(text_of(mamba::save(continued.state())), text_of(mamba::save(snapshot.state())));
  moved.check(second);
  snapshot.check(second);  // from wherever it is
}

TEST_EACH(SnapshotTest, RefusesWhatCannotWork, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  const LanguageModel model = bytes_model(device, dtype);
  const auto expect_part = [](const std::string& part, auto call) {
    try {
      call();
      ADD_FAILURE() << "expected an error with " << part;
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  Generator generator = begun(model, lively(1), 4);
  GeneratorSnapshot snapshot = generator.snapshot();
  const LanguageModel other =
      LanguageModel::random(model.config(), 7, model.dtype(), model.device());
  Generator of_other(other);
  of_other.read({1});
  const auto before = bits(of_other.logits());
  const std::string got = "got one of another (" + snapshot.fingerprint() + ")";
  expect_part("Generator::copy_from: snapshot: expected a state of this model (",
              [&] { of_other.copy_from(snapshot); });
  expect_part(got, [&] { Generator(other, snapshot); });
  GeneratorPool pool(other, 1);
  expect_part("GeneratorPool::make: snapshot: ", [&] { pool.make(snapshot); });
  EXPECT_EQ(pool.size(), 0);
  EXPECT_EQ(of_other.tokens_seen(), 1);
  EXPECT_EQ(bits(of_other.logits()), before);
  expect_part("GeneratorSnapshot::check: snapshot: expected a state of this model (",
              [&] { snapshot.check(other); });
  const DType other_dtype = dtype == DType::f32 ? DType::bf16 : DType::f32;
  const LanguageModel rounded = bytes_model(device, other_dtype);
  expect_part(std::string("a state of this model in ") + name_of(other_dtype),
              [&] { Generator(rounded, snapshot); });

  SamplingOptions options = lively(1);  // of ids that a smaller vocabulary does not have
  options.allowed = {3, 255};
  options.logit_bias = {{255, 1.0f}};
  const GeneratorSnapshot biased = begun(model, options, 4).snapshot();
  LanguageModelConfig smaller = model.config();
  smaller.vocab_size = smaller.vocab_rows = 100;
  const LanguageModel few = LanguageModel::random(smaller, 7, model.dtype(), model.device());
  expect_part("Generator: snapshot: expected a state of this model (",
              [&] { Generator(few, biased); });
  GeneratorPool of_few(few, 1);
  expect_part("GeneratorPool::make: snapshot: expected a state of this model (",
              [&] { of_few.make(biased); });

  Bytes bytes = snapshot.save();
  bytes[bytes.size() / 2] ^= std::byte{4};
  expect_error<FormatError>(
      "GeneratorSnapshot::load: bytes: expected the contents that were written, got others",
      [&] { GeneratorSnapshot::load(bytes); });
  expect_error<FormatError>(
      "GeneratorSnapshot::load: x: expected a saved generation of one sequence, got a bare state",
      [&] { GeneratorSnapshot::load(mamba::save(generator.state()), "x"); });

  const GeneratorSnapshot kept = std::move(snapshot);
  const std::string moved =
      "GeneratorSnapshot: snapshot: expected a snapshot, got one that was moved from";
  expect_error<ArgumentError>(moved, [&] { snapshot.clone(); });
  expect_error<ArgumentError>(moved, [&] { snapshot.to(Device::cpu()); });
  expect_error<ArgumentError>(moved, [&] { static_cast<void>(snapshot.save()); });
  expect_error<ArgumentError>(moved, [&] { Generator(model, snapshot); });
  expect_error<ArgumentError>(moved, [&] { snapshot.check(model); });
  expect_error<ArgumentError>(moved, [&] { generator.copy_from(snapshot); });
  snapshot = kept.clone();
  EXPECT_EQ(snapshot.tokens_seen(), kept.tokens_seen());
}

}  // namespace
}  // namespace mamba
