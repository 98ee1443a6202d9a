// What owns work owns its stream: whatever is made on one thread may be used on another, and by
// many at once what is constant. Under the thread sanitizer these tests, and all others with Thread
// in their names, are a program of their own (mamba_thread_tests).
#include <mamba/mamba.hpp>

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/process_threads.hpp"
#include "each.hpp"
#include "files.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::golden_folder;
using testing::process_threads;
using testing::TemporaryFolder;

using Ids = Generator::Ids;

const Ids prompt{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
constexpr int written = 40;  // tokens of a text

SamplingOptions lively(std::uint64_t seed) {
  SamplingOptions options;
  options.temperature = 1;
  options.seed = seed;
  return options;
}

LanguageModel small(Device device, DType dtype = DType::f32) {
  LanguageModelConfig config;
  config.layer.d_model = 64;
  config.n_layer = 2;
  config.vocab_size = 256;
  return LanguageModel::random(config, 1, dtype, device);
}

// So many tokens more.
Ids write(Generator& generator, int count = written) {
  Ids ids;
  for (int i = 0; i < count; ++i) ids.push_back(generator.next());
  return ids;
}

Ids alone(const LanguageModel& model, const SamplingOptions& options = {}) {
  Stream stream(model.device());
  Generator generator(model, options, stream);
  generator.read(prompt);
  return write(generator);
}

// work(i) for each i, all at once, each on a thread of its own.
void at_once(int count, const std::function<void(int)>& work) {
  std::atomic<int> waiting{count};
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      --waiting;
      while (waiting > 0) std::this_thread::yield();
      EXPECT_NO_THROW(work(i));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// What `make` makes, on a thread that has ended since.
template <class Make>
auto elsewhere(const Make& make) {
  return std::async(std::launch::async, make).get();
}

// ---- generators ---------------------------------------------------------------------------------

TEST_EACH(Threads, GeneratorsOfOneThreadRunOnOthersAtOnce, Device device) {
  const LanguageModel model = small(device);
  const std::vector<Ids> expected{alone(model, lively(0)), alone(model, lively(1)),
                                  alone(model, lively(2))};
  for (int round = 0; round < 20; ++round) {
    std::vector<Generator> generators;
    for (std::uint64_t i = 0; i < 3; ++i) generators.emplace_back(model, lively(i));
    std::vector<Ids> got(3);
    at_once(3, [&](int i) {
      const auto k = static_cast<std::size_t>(i);
      generators[k].read(prompt);
      got[k] = write(generators[k]);
    });
    ASSERT_EQ(got, expected) << "round " << round;
  }
}

TEST_EACH(Threads, AGeneratorOutlivesTheThreadThatMadeIt, Device device) {
  const LanguageModel model = small(device);
  Generator generator = elsewhere([&] {
    Generator made(model, lively(3));
    made.read(prompt);
    return made;
  });
  EXPECT_EQ(write(generator), alone(model, lively(3)));
}

TEST_EACH(Threads, EachTokenMayBeChosenOnAnotherThread, Device device) {
  const LanguageModel model = small(device);
  Generator generator(model, lively(4));
  std::thread([&] { generator.read(prompt); }).join();
  Ids got;
  for (int i = 0; i < written; ++i) {
    got.push_back(elsewhere([&] { return generator.next(); }));
  }
  EXPECT_EQ(got, alone(model, lively(4)));
}

TEST_EACH(Threads, AForkRunsBesideItsGenerator, Device device) {
  const LanguageModel model = small(device);
  const Ids expected = alone(model, lively(5));
  for (int round = 0; round < 20; ++round) {
    Generator first(model, lively(5));
    first.read(prompt);
    Generator second = elsewhere([&] { return first.fork(); });
    std::vector<Ids> got(2);
    at_once(2, [&](int i) { got[static_cast<std::size_t>(i)] = write(i == 0 ? first : second); });
    ASSERT_EQ(got, (std::vector<Ids>{expected, expected})) << "round " << round;
  }
}

TEST_EACH(Threads, AForkOutlivesItsGenerator, Device device) {
  const LanguageModel model = small(device);
  auto first = std::make_unique<Generator>(model, lively(6));
  first->read(prompt);
  Generator second = first->fork();
  std::vector<Generator> more = first->fork(2);
  first.reset();
  EXPECT_EQ(write(second), alone(model, lively(6)));
  EXPECT_EQ(write(more.front()), alone(model, lively(6)));
}

TEST_EACH(Threads, RestoredGeneratorsRunOnOthers, Device device) {
  const LanguageModel model = small(device);
  const TemporaryFolder folder;
  {
    Generator generator(model, lively(7));
    generator.read(prompt);
    generator.save(folder.file("text"));
  }
  std::vector<Generator> generators = elsewhere([&] {
    std::vector<Generator> list;
    for (int i = 0; i < 2; ++i) {
      list.push_back(Generator::restore(folder.file("text"), model));
    }
    return list;
  });
  std::vector<Ids> got(2);
  at_once(2, [&](int i) {
    got[static_cast<std::size_t>(i)] = write(generators[static_cast<std::size_t>(i)]);
  });
  EXPECT_EQ(got, std::vector<Ids>(2, alone(model, lively(7))));
}

// A pool is one thread's at a time, with its members; pools are not each other's.
TEST_EACH(Threads, PoolsOfOneThreadRunOnOthersAtOnceAndOutliveIt, Device device) {
  const LanguageModel model = small(device);
  const Ids expected = alone(model);
  for (int round = 0; round < 10; ++round) {
    std::vector<GeneratorPool> pools = elsewhere([&] {
      std::vector<GeneratorPool> list;
      for (int i = 0; i < 3; ++i) list.emplace_back(model, 2);
      return list;
    });
    std::vector<Ids> got(3);
    at_once(3, [&](int i) {
      GeneratorPool& pool = pools[static_cast<std::size_t>(i)];
      Generator one = pool.make();
      one.read(prompt);
      got[static_cast<std::size_t>(i)] = write(one);
    });
    ASSERT_EQ(got, std::vector<Ids>(3, expected)) << "round " << round;
  }
}

TEST_EACH(Threads, MembersOutliveTheirPoolAndItsThread, Device device) {
  const LanguageModel model = small(device);
  std::vector<Generator> members = elsewhere([&] {
    GeneratorPool pool(model, 2);
    std::vector<Generator> list;
    for (std::uint64_t i = 0; i < 2; ++i) list.push_back(pool.make(lively(i)));
    return list;
  });
  Generator::read({&members[0], &members[1]}, {prompt, prompt});
  Ids first;
  for (int i = 0; i < written; ++i) {
    first.push_back(Generator::next({&members[0], &members[1]})[0].token);
  }
  EXPECT_EQ(first, alone(model, lively(0)));
}

// ---- streams ------------------------------------------------------------------------------------

TEST_EACH(Threads, AStreamMayBeMadeUsedAndEndedOnDifferentThreads, Device device) {
  const LanguageModel model = small(device);
  const Ids expected = alone(model, lively(8));
  for (int round = 0; round < 10; ++round) {
    auto stream = elsewhere([&] { return std::make_unique<Stream>(model.device(), 2); });
    std::vector<Generator> one;
    std::thread([&] {
      one.emplace_back(model, lively(8), *stream);
      one.back().read(prompt);
    }).join();
    EXPECT_EQ(write(one.back()), expected);
    std::thread([&] {
      one.clear();
      stream.reset();
    }).join();
  }
}

// The same bits from streams of one to four threads that all work at once, in each dtype.
TEST_EACH(Threads, StreamsOfManyThreadsShareAModelAtOnce, Device device, DType dtype) {
  const LanguageModel model = small(device, dtype);
  const auto logits_of = [&](int threads, std::int64_t time, Stream* lent = nullptr) {
    Stream own(device, threads);
    Stream& stream = lent != nullptr ? *lent : own;
    Ids ids;
    for (std::int64_t i = 0; i < 2 * time; ++i) ids.push_back(static_cast<std::int32_t>(i % 256));
    const Tensor tokens = Tensor::from(ids, {2, time}).to(device);
    StackState state = model.make_state(2);
    Tensor logits({2, 256}, DType::f32, device);
    model.forward(tokens, state, Logits::last(logits), stream);
    stream.synchronize();
    return bits(logits);
  };
  const std::vector<std::int64_t> times{1, 3, 40};
  std::vector<std::vector<std::vector<unsigned char>>> expected;
  for (int threads = 1; threads <= 4; ++threads) {
    expected.emplace_back();
    for (const std::int64_t time : times) expected.back().push_back(logits_of(threads, time));
  }
  std::atomic<int> wrong{0};
  at_once(4, [&](int i) {
    Stream stream(device, i + 1);
    for (int repeat = 0; repeat < 5; ++repeat) {
      for (std::size_t t = 0; t < times.size(); ++t) {
        wrong += logits_of(i + 1, times[t], repeat % 2 == 0 ? &stream : nullptr) !=
                 expected[static_cast<std::size_t>(i)][t];
      }
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST_EACH(Threads, AThousandGeneratorsAddNone, Device device) {
  const LanguageModel model = small(device);
  const Ids longer(300, 7);  // enough work for several threads
  Generator first(model);    // those that the process has are there from here on
  first.read(longer);
  const std::int32_t expected = first.next();
  const int before = process_threads();
  std::vector<Generator> generators;
  generators.reserve(1000);
  for (int i = 0; i < 1000; ++i) generators.emplace_back(model);
  EXPECT_EQ(process_threads(), before);
  for (std::size_t i = 0; i < generators.size(); i += 10) {
    generators[i].read(longer);
    EXPECT_EQ(generators[i].next(), expected);
  }
  EXPECT_EQ(process_threads(), before);
}

TEST(Threads, StreamsShareTheWorkersOfTheProcess) {
  const Tensor logits = Tensor::zeros({64, 8}, DType::f32);
  Tensor ids = Tensor::zeros({64}, DType::i32);
  Sample sample;  // 64 rows keep 16 threads busy
  sample.logits = logits;
  sample.ids = ids;
  const int before = process_threads();
  std::vector<Stream> streams;
  for (int i = 0; i < 200; ++i) {
    streams.emplace_back(Device::cpu(), 16);
    run(sample, streams.back());
  }
  EXPECT_LE(process_threads(), before + 15)
      << "one call at a time, with 15 threads beside its caller";
}

// A stream that has nothing to do wakes nobody: the call is over without a thread and without
// memory of its own.
TEST(Threads, ACallOfTime0StartsNone) {
  LayerConfig config;
  config.d_model = 768;
  const Layer layer = Layer::random(config, 1);
  MambaState state = layer.make_state(1);
  const Tensor x({1, 0, 768}, DType::f32);
  Tensor y({1, 0, 768}, DType::f32);
  Stream stream(Device::cpu(), 64);
  const int before = process_threads();
  layer.forward(x, state, y, stream);
  EXPECT_EQ(process_threads(), before);
}

// ---- what is constant ---------------------------------------------------------------------------

TEST(Threads, ATokenizerIsSharedByMany) {
  const Tokenizer tokenizer = Tokenizer::load(golden_folder("tokenizer"));
  const std::vector<std::string> texts{"In the beginning", "e\xcc\x81t\xc3\xa9 \xf0\x9f\x90\x8d",
                                       std::string(2000, 'a'), "\xff broken \n\n  spaces"};
  std::vector<Ids> expected;
  for (const std::string& text : texts) expected.push_back(tokenizer.encode(text));
  std::atomic<int> wrong{0};
  at_once(4, [&](int i) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const std::size_t k = static_cast<std::size_t>(i + repeat) % texts.size();
      wrong += tokenizer.encode(texts[k]) != expected[k];
      wrong += tokenizer.decode(expected[k]).empty();
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST_EACH(Threads, AModelIsFingerprintedSavedAndReadByManyAtOnce, Device device) {
  const LanguageModel model = small(device);
  const TemporaryFolder folder;
  const std::string expected = model.fingerprint();
  const Ids text = alone(model);
  std::atomic<int> wrong{0};
  at_once(4, [&](int i) {
    const std::string place = folder.file(std::to_string(i));
    wrong += model.fingerprint() != expected;
    model.save(place);
    const LanguageModel again = LanguageModel::load(place, DType::f32, model.device());
    Generator generator(again);
    generator.read(prompt);
    wrong += write(generator) != text;
  });
  EXPECT_EQ(wrong, 0);
}

// ---- caches -------------------------------------------------------------------------------------

// Generators that were made on the test's thread, filled from one cache by others.
TEST_EACH(Threads, ACacheFillsGeneratorsOfOtherThreads, Device device) {
  const LanguageModel model = small(device);
  CacheOptions options;
  options.keep_every = 4;
  options.device_bytes = options.host_bytes = 3 * model.make_state(1).bytes();
  StateCache cache(model, options);
  const Ids expected = alone(model);
  std::vector<Generator> generators;
  for (int i = 0; i < 12; ++i) generators.emplace_back(model);
  std::vector<Ids> got(generators.size());
  at_once(4, [&](int i) {
    for (auto k = static_cast<std::size_t>(i); k < generators.size(); k += 4) {
      cache.read(generators[k], prompt);
      got[k] = write(generators[k]);
    }
  });
  EXPECT_EQ(got, std::vector<Ids>(generators.size(), expected));
  EXPECT_GT(cache.counts().hits, 0);
}

}  // namespace
}  // namespace mamba
