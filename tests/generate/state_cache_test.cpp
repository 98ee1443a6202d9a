// What was read once is not read again, wherever it is kept, and nothing false is ever believed.
#include <mamba/state_cache.hpp>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>

#include <mamba/state_file.hpp>

#include "each.hpp"
#include "files.hpp"
#include "host/files/content_hash.hpp"
#include "host/generate/known_prefix.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::clear;
using testing::expect_error;
using testing::FullDisk;
using testing::golden_folder;
using testing::names;
using testing::read_file;
using testing::relative_error;
using testing::TemporaryFolder;
using testing::values;
using testing::write_file;

using Ids = Generator::Ids;

// The beginning all texts share, and an end of their own.
Ids text(std::int64_t length, std::int64_t end_of = 0, std::int64_t end = 0) {
  Ids ids;
  for (std::int64_t i = 0; i < length; ++i) {
    ids.push_back(static_cast<std::int32_t>(1 + (i * i + 7 * i) % 90));
  }
  for (std::int64_t i = 0; i < end; ++i) {
    ids.push_back(static_cast<std::int32_t>(1 + (end_of * 13 + i * 5) % 90));
  }
  return ids;
}

LanguageModel golden(Device device = Device::cpu(), const char* name = "base") {
  return LanguageModel::load(golden_folder(name), DType::f32, device);
}

// As read without a cache, up to the rounding of another number of rows.
void expect_as_read(Generator& generator, const Ids& ids) {
  Generator plain(generator.model());
  plain.read(ids);
  EXPECT_EQ(generator.tokens_seen(), plain.tokens_seen());
  EXPECT_LE(relative_error(values(generator.logits()), values(plain.logits())), 1e-5);
  EXPECT_LE(
      relative_error(values(generator.state().layers[1].ssm), values(plain.state().layers[1].ssm)),
      1e-5);
}

std::int64_t read(StateCache& cache, const LanguageModel& model, const Ids& ids) {
  Generator generator(model);
  const std::int64_t known = cache.read(generator, ids);
  expect_as_read(generator, ids);
  return known;
}

std::int64_t bytes_of_one(const LanguageModel& model) {
  constexpr std::int64_t salt_and_proof = 8 + 16;
  return model.make_state(1).bytes() + 4 * model.config().vocab_size + salt_and_proof;
}

TEST_EACH(StateCacheTest, AHitGoesOnFromTheLongestKnownPrefix, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options;
  options.keep_every = 16;
  StateCache cache(model, options);
  EXPECT_EQ(read(cache, model, text(40)), 0);
  EXPECT_EQ(read(cache, model, text(32, 1, 20)), 32);
  EXPECT_EQ(read(cache, model, text(20, 2, 20)), 16);
  EXPECT_EQ(read(cache, model, text(40, 3, 1)), 40) << "the end of a prompt is kept too";
  EXPECT_EQ(read(cache, model, text(40)), 40);
  EXPECT_EQ(read(cache, model, text(15)), 0);
  EXPECT_EQ(read(cache, model, {}), 0);
  const CacheCounts counts = cache.counts();
  EXPECT_EQ(counts.hits, 4);
  EXPECT_EQ(counts.misses, 3);
  EXPECT_EQ(counts.tokens, 32 + 16 + 40 + 40);
}

TEST_EACH(StateCacheTest, AKnownPromptGivesTheSameBits, Device device) {
  const LanguageModel model = golden(device);
  StateCache cache(model);
  Generator first(model);
  cache.read(first, text(40));
  Generator second(model);
  EXPECT_EQ(cache.read(second, text(40)), 40);
  EXPECT_EQ(bits(second.logits()), bits(first.logits()));
  EXPECT_EQ(bits(second.state().layers[0].conv), bits(first.state().layers[0].conv));
  EXPECT_EQ(second.next(), first.next());
  // What a conversation has come to can be kept as well: its next turn begins there.
  Ids ids = text(40);
  ids.push_back(first.next());
  Generator third(model);
  third.read(ids);
  cache.keep(third, ids);
  Generator fourth(model);
  EXPECT_EQ(cache.find(fourth, ids), 41);
}

TEST_EACH(StateCacheTest, RepetitionPenaltyKnowsTheWholePrompt, Device device) {
  const LanguageModel model = golden(device);
  StateCache cache(model);
  SamplingOptions options;
  options.repetition_penalty = 1000;
  for (int time = 0; time < 2; ++time) {
    Generator cached(model, options);
    cache.read(cached, text(40));
    Generator plain(model, options);
    plain.read(text(40));
    GenerateOptions ten;
    ten.max_tokens = 10;
    EXPECT_EQ(cached.generate(ten).tokens, plain.generate(ten).tokens);
  }
}

TEST_EACH(StateCacheTest, WhatWasNotUsedForLongestGoesFirst, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options;
  options.host_bytes = 3 * bytes_of_one(model);
  StateCache cache(model, options);
  for (std::int64_t i = 0; i < 3; ++i) read(cache, model, text(0, i, 10));
  EXPECT_EQ(cache.counts().host_bytes, options.host_bytes);
  EXPECT_EQ(read(cache, model, text(0, 0, 10)), 10);
  read(cache, model, text(0, 3, 10));  // in place of text 1
  EXPECT_EQ(cache.counts().host_bytes, options.host_bytes);
  EXPECT_EQ(read(cache, model, text(0, 0, 10)), 10);
  EXPECT_EQ(read(cache, model, text(0, 2, 10)), 10);
  EXPECT_EQ(read(cache, model, text(0, 3, 10)), 10);
  EXPECT_EQ(read(cache, model, text(0, 1, 10)), 0);
  EXPECT_EQ(cache.counts().device_bytes, 0);
}

// A caller may give both bounds whatever the device is.
TEST(StateCacheTest, OnTheCpuBothMemoriesAreOne) {
  const LanguageModel model = golden();
  CacheOptions options;
  options.device_bytes = 2 * bytes_of_one(model);
  options.host_bytes = bytes_of_one(model);
  StateCache cache(model, options);
  for (std::int64_t i = 0; i < 4; ++i) read(cache, model, text(0, i, 10));
  EXPECT_EQ(cache.counts().host_bytes, 3 * bytes_of_one(model));
  EXPECT_EQ(cache.counts().device_bytes, 0);
  for (std::int64_t i = 1; i < 4; ++i) EXPECT_EQ(read(cache, model, text(0, i, 10)), 10);
  options.device_bytes = options.host_bytes = INT64_MAX;
  StateCache boundless(model, options);
  read(boundless, model, text(0, 1, 10));
  EXPECT_EQ(read(boundless, model, text(0, 1, 10)), 10);
}

TEST_EACH(StateCacheTest, WhatFallsOutIsFoundFurtherDown, Device device) {
  const LanguageModel model = golden(device);
  const TemporaryFolder folder;
  CacheOptions options;
  const std::int64_t one = bytes_of_one(model);
  options.device_bytes = device.is_cuda() ? 2 * one : 0;
  options.host_bytes = 2 * one;
  options.disk_bytes = 10 * one;
  options.folder = folder.file("cache");
  options.on_problem = [](const std::string& problem) { ADD_FAILURE() << problem; };
  StateCache cache(model, options);
  for (std::int64_t i = 0; i < 7; ++i) read(cache, model, text(0, i, 10));
  EXPECT_EQ(cache.counts().device_bytes, options.device_bytes);
  EXPECT_EQ(cache.counts().host_bytes, options.host_bytes);
  EXPECT_GT(cache.counts().disk_bytes, 3 * one);
  for (int round = 0; round < 2; ++round) {
    for (std::int64_t i = 0; i < 7; ++i) EXPECT_EQ(read(cache, model, text(0, i, 10)), 10) << i;
  }
  EXPECT_LE(cache.counts().device_bytes, options.device_bytes);
  EXPECT_LE(cache.counts().host_bytes, options.host_bytes);
}

// ---- files --------------------------------------------------------------------------------------

class StateCacheFiles : public ::testing::Test {
 protected:
  // Nothing stays in memory: every hit is one of a file.
  CacheOptions on_disk(std::int64_t bytes = std::int64_t{1} << 30) {
    CacheOptions options;
    options.host_bytes = 0;
    options.disk_bytes = bytes;
    options.folder = folder_.path().string();
    options.on_problem = [this](const std::string& problem) { problems_.push_back(problem); };
    return options;
  }
  std::string only_file() const { return folder_.file(names(folder_).at(0)); }
  TemporaryFolder folder_;
  std::vector<std::string> problems_;
};

TEST_EACH_F(StateCacheFiles, AnotherProcessFindsThem, Device device) {
  const LanguageModel model = golden(device);
  {
    StateCache cache(model, on_disk());
    read(cache, model, text(30));
  }
  StateCache cache(model, on_disk());
  EXPECT_GT(cache.counts().disk_bytes, 0);
  EXPECT_EQ(read(cache, model, text(30, 1, 5)), 30);
  StateCache at_once(model, on_disk());
  for (const std::string& name : names(folder_)) {  // another process had no room for them
    std::filesystem::remove(folder_.file(name));
  }
  EXPECT_EQ(read(at_once, model, text(30)), 0);
  EXPECT_EQ(problems_.size(), 0u);
}

TEST_EACH_F(StateCacheFiles, AreBoundedAndTheLongestUnusedGoFirst, Device device) {
  const LanguageModel model = golden(device);
  std::int64_t size = 0;
  {
    StateCache cache(model, on_disk());
    std::vector<std::string> before;
    for (std::int64_t i = 0; i < 4; ++i) {
      read(cache, model, text(0, i, 10));
      // The order of use is the files' times, which a fast machine would make equal.
      for (const std::string& name : names(folder_)) {
        if (std::count(before.begin(), before.end(), name) > 0) continue;
        std::filesystem::last_write_time(
            folder_.file(name),
            std::filesystem::file_time_type::clock::now() - std::chrono::minutes(4 - i));
      }
      before = names(folder_);
    }
    EXPECT_EQ(read(cache, model, text(0, 0, 10)), 10);
    size = cache.counts().disk_bytes / 4;
  }
  StateCache cache(model, on_disk(2 * size));
  EXPECT_EQ(names(folder_).size(), 2u);
  EXPECT_EQ(cache.counts().disk_bytes, 2 * size);
  EXPECT_EQ(read(cache, model, text(0, 3, 10)), 10);
  EXPECT_EQ(read(cache, model, text(0, 0, 10)), 10);
  read(cache, model, text(0, 5, 10));
  EXPECT_EQ(names(folder_).size(), 2u);
  EXPECT_EQ(read(cache, model, text(0, 0, 10)), 10);
  EXPECT_EQ(problems_.size(), 0u);
}

TEST_EACH_F(StateCacheFiles, WhatAKilledProcessLeftIsRemovedAndNothingElse, Device device) {
  const LanguageModel model = golden(device);
  const std::string left = ".mamba-0123456789abcdef.tmp";
  const std::string at_work = ".mamba-fedcba9876543210.tmp";
  const std::vector<std::string> others{".mamba-0123456789abcdeg.tmp", ".mamba-notes.tmp",
                                        "0123456789abcdef.tmp"};
  const auto make = [&](const std::string& name, std::chrono::minutes age) {
    write_file(folder_.file(name), "half");
    std::filesystem::last_write_time(folder_.file(name),
                                     std::filesystem::file_time_type::clock::now() - age);
  };
  make(left, std::chrono::minutes(0));
  make(at_work, std::chrono::hours(100));
  for (const std::string& name : others) make(name, std::chrono::hours(100));
  // Another process would have it open like this.
  const int file = open(folder_.file(at_work).c_str(), O_WRONLY | O_CLOEXEC);
  ASSERT_EQ(flock(file, LOCK_EX), 0);
  const StateCache cache(model, on_disk());
  close(file);
  const std::vector<std::string> kept = names(folder_);
  EXPECT_EQ(kept.size(), 4u);
  EXPECT_EQ(std::count(kept.begin(), kept.end(), left), 0);
}

TEST_EACH_F(StateCacheFiles, OfOtherModelsAreLeftAlone, Device device) {
  const LanguageModel model = golden(device);
  const LanguageModel other = golden(model.device(), "sharded_bf16");
  write_file(folder_.file("notes.txt"), "mine");
  {
    StateCache cache(model, on_disk());
    read(cache, model, text(30));
    StateCache second(other, on_disk());
    EXPECT_EQ(read(second, other, text(30)), 0);
    const LanguageModel rounded =
        LanguageModel::load(golden_folder("base"), DType::bf16, model.device());
    StateCache third(rounded, on_disk());
    EXPECT_EQ(third.counts().disk_bytes, 0) << "a state of another dtype is another state";
  }
  EXPECT_EQ(names(folder_).size(), 3u);
  StateCache tiny(model, on_disk(1));
  EXPECT_EQ(names(folder_).size(), 2u);
  EXPECT_EQ(problems_.size(), 0u);
}

TEST_EACH_F(StateCacheFiles, DamagedOnesAreSkippedAndSaid, Device device) {
  const LanguageModel model = golden(device);
  {
    StateCache cache(model, on_disk());
    read(cache, model, text(30));
  }
  const std::string file = only_file();
  const std::string whole = read_file(file);
  testing::Random random(3);
  int said = 0;
  for (int trial = 0; trial < 150; ++trial) {
    std::string damaged = whole;
    const auto at =
        static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(whole.size()) - 1));
    if (trial % 5 == 0) {
      damaged.resize(at);
    } else {
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << random.integer(0, 7)));
    }
    write_file(file, damaged);
    problems_.clear();
    StateCache cache(model, on_disk());
    EXPECT_EQ(read(cache, model, text(30)), 0) << "byte " << at;  // and it is as read
    ASSERT_EQ(problems_.size(), 1u) << "byte " << at;
    EXPECT_NE(problems_[0].find(file), std::string::npos) << problems_[0];
    said += problems_[0].empty() ? 0 : 1;
    EXPECT_EQ(read(cache, model, text(30)), 30) << "it was written again, whole";
  }
  EXPECT_EQ(said, 150);
}

// A whole file under the name of another prefix.
TEST_EACH_F(StateCacheFiles, OneUnderAFalseNameIsDamaged, Device device) {
  const LanguageModel model = golden(device);
  StateCache cache(model, on_disk());
  read(cache, model, text(0, 1, 30));
  const std::string first = only_file();
  const std::string bytes = read_file(first);
  std::filesystem::remove(first);
  read(cache, model, text(0, 2, 30));
  const std::string second = only_file();
  write_file(second, bytes);
  EXPECT_EQ(read(cache, model, text(0, 2, 30)), 0);
  EXPECT_EQ(problems_.size(), 1u);
}

TEST_EACH_F(StateCacheFiles, AFullDiskIsSaidAndNothingIsLeft, Device device) {
  const LanguageModel model = golden(device);
  StateCache cache(model, on_disk());
  {
    const FullDisk full(1000);
    EXPECT_EQ(read(cache, model, text(30)), 0);
  }
  ASSERT_EQ(problems_.size(), 1u);
  EXPECT_NE(problems_[0].find("expected a file that can be written"), std::string::npos);
  EXPECT_EQ(names(folder_).size(), 0u);
  EXPECT_EQ(cache.counts().disk_bytes, 0);
  EXPECT_EQ(read(cache, model, text(30)), 0);
  EXPECT_EQ(read(cache, model, text(30)), 30) << "there is room again";
}

TEST_EACH_F(StateCacheFiles, AFolderThatIsGoneIsSaid, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options = on_disk();
  options.folder = folder_.file("cache");
  StateCache cache(model, options);
  std::filesystem::remove_all(options.folder);
  EXPECT_EQ(read(cache, model, text(30)), 0);
  EXPECT_EQ(problems_.size(), 1u);
  write_file(folder_.file("file"), "");
  options.folder = folder_.file("file") + "/cache";
  EXPECT_THROW(StateCache(model, options), Error);
}

// One in which nobody, not even root, may make a file.
TEST_EACH_F(StateCacheFiles, AReadOnlyFolderIsSaid, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options = on_disk();
  options.folder = "/proc/self";
  StateCache cache(model, options);
  EXPECT_EQ(read(cache, model, text(30)), 0);
  ASSERT_EQ(problems_.size(), 1u);
  EXPECT_NE(problems_[0].find("expected a file that can be written"), std::string::npos);
  EXPECT_EQ(cache.counts().disk_bytes, 0);
}

// ---- long prompts -------------------------------------------------------------------------------

TEST_EACH_F(StateCacheFiles, EachPieceOfALongPromptTakesTheSameRoom, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options = on_disk();
  options.keep_every = 64;
  StateCache cache(model, options);
  read(cache, model, text(64 * 60));
  const std::vector<std::string> files = names(folder_);
  EXPECT_EQ(files.size(), 60u);
  std::uintmax_t least = UINTMAX_MAX, most = 0;
  for (const std::string& name : files) {
    const auto size = std::filesystem::file_size(folder_.file(name));
    least = std::min(least, size);
    most = std::max(most, size);
  }
  EXPECT_LE(most - least, 64u) << "but for the digits of a length";
  EXPECT_EQ(cache.counts().disk_bytes, [&] {
    std::int64_t sum = 0;
    for (const std::string& name : files) {
      sum += static_cast<std::int64_t>(std::filesystem::file_size(folder_.file(name)));
    }
    return sum;
  }());
}

// Ten times as long as there is room for, in this process or in the next, in files or in memory.
TEST_EACH_F(StateCacheFiles, ALongPromptPushesOutNeitherItsBeginningNorWhatOthersShare,
            Device device) {
  const LanguageModel model = golden(device);
  for (const bool in_files : {true, false}) {
    for (const bool one_process : {true, false}) {
      if (!in_files && !one_process) continue;
      clear(folder_);
      CacheOptions options = on_disk(12 * 3 * bytes_of_one(model) / 2);
      if (!in_files) {
        options = {};
        options.host_bytes = 12 * bytes_of_one(model);
      }
      options.keep_every = 16;
      std::optional<StateCache> cache(std::in_place, model, options);
      const auto next = [&] {
        if (!one_process) cache.emplace(model, options);
      };
      read(*cache, model, text(0, 1, 40));  // 16, 32, 40
      next();
      Ids other = text(0, 1, 33);
      other.back() = 7;
      EXPECT_EQ(read(*cache, model, other), 32);
      next();
      read(*cache, model, text(16 * 120));
      next();
      EXPECT_EQ(read(*cache, model, text(16 * 3, 2, 5)), 48) << "where the long one begins";
      next();
      other.back() = 8;
      EXPECT_EQ(read(*cache, model, other), 32) << "what two have shared";
      EXPECT_EQ(problems_.size(), 0u);
    }
  }
}

// What nobody uses any more makes room in the end, though somebody has used it once.
TEST_EACH_F(StateCacheFiles, WhatWasUsedOnceDoesNotStayForEver, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options;
  options.host_bytes = 8 * bytes_of_one(model);
  StateCache cache(model, options);
  for (std::int64_t i = 0; i < 40; ++i) {
    EXPECT_EQ(read(cache, model, text(0, i, 10)), 0);
    EXPECT_EQ(read(cache, model, text(0, i, 10)), 10) << "the new finds room too";
  }
}

TEST_EACH_F(StateCacheFiles, OlderOnesWithAllTheirIdsAreRead, Device device) {
  const LanguageModel model = golden(device);
  {
    StateCache cache(model, on_disk());
    read(cache, model, text(30));
  }
  const std::string file = only_file();
  SavedState saved = load_state(file);
  ASSERT_EQ(saved.metadata.notes.erase("prefix"), 1u);
  saved.metadata.notes.erase("hash");
  const Tensor ids = Tensor::from(text(30), {30});
  const StateExtras extras{{"prefix.ids", ids},
                           {"prefix.logits", saved.extras.at("prefix.logits")}};
  seal(saved.state, saved.metadata, extras);
  save(file, saved.state, saved.metadata, extras);
  StateCache cache(model, on_disk());
  EXPECT_EQ(read(cache, model, text(30, 1, 5)), 30);
  EXPECT_EQ(problems_.size(), 0u);
}

// Two texts whose keys were equal would still not be taken for each other.
TEST(KnownPrefixTest, IsProvenByItsIds) {
  KnownPrefix prefix, again;
  const Ids ids = text(300);
  prefix.prove(ids.data(), 256);
  again.prove(ids.data(), 256);
  EXPECT_NE(prefix.salt, again.salt);
  EXPECT_TRUE(prefix.begins(ids, 256));
  EXPECT_FALSE(prefix.begins(ids, 255));
  EXPECT_FALSE(prefix.begins(text(200), 256));
  for (const std::size_t at : {0u, 100u, 255u}) {
    Ids other = ids;
    ++other[at];
    EXPECT_FALSE(prefix.begins(other, 256));
  }
}

// Each with lists of its own, as processes have them: what one removes, another may just read.
TEST_EACH_F(StateCacheFiles, SeveralCachesOnOneFolderRaiseNoAlarm, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options = on_disk(5 * bytes_of_one(model));
  options.keep_every = 8;
  std::atomic<int> alarms{0};
  options.on_problem = [&](const std::string& problem) {
    ++alarms;
    ADD_FAILURE() << problem;
  };
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Stream stream(model.device(), 1);
      testing::Random random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < 40; ++i) {
        StateCache cache(model, options);
        for (int j = 0; j < 3; ++j) {
          Generator generator(model, {}, stream);
          cache.read(generator, text(16, random.integer(0, 3), 12));
          stream.synchronize();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(alarms, 0);
  for (const std::string& name : names(folder_)) {
    EXPECT_EQ(std::filesystem::path(name).extension(), ".prefix");
  }
}

// ---- threads ------------------------------------------------------------------------------------

TEST_EACH_F(StateCacheFiles, AnyNumberOfThreadsMayUseOne, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options = on_disk(6 * bytes_of_one(model));
  options.host_bytes = 5 * bytes_of_one(model);
  options.keep_every = 8;
  options.on_problem = [](const std::string& problem) { ADD_FAILURE() << problem; };
  StateCache cache(model, options);
  std::vector<std::vector<double>> expected;
  for (std::int64_t i = 0; i < 6; ++i) {
    Generator plain(model);
    plain.read(text(16, i, 20));
    expected.push_back(values(plain.logits()));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Stream stream(model.device(), 1);
      testing::Random random(static_cast<std::uint64_t>(t));
      for (int i = 0; i < 60; ++i) {
        const std::int64_t which = random.integer(0, 5);
        Generator generator(model, {}, stream);
        cache.read(generator, text(16, which, 20));
        stream.synchronize();  // values() works on the thread's own
        const auto error =
            relative_error(values(generator.logits()), expected[static_cast<std::size_t>(which)]);
        wrong += error > 1e-5 ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(cache.counts().hits, 100);
  EXPECT_LE(cache.counts().host_bytes, options.host_bytes);
  EXPECT_LE(cache.counts().disk_bytes, options.disk_bytes);
}

// ---- errors -------------------------------------------------------------------------------------

TEST_EACH_F(StateCacheFiles, RefusesWhatCannotWork, Device device) {
  const LanguageModel model = golden(device);
  CacheOptions options;
  options.folder = folder_.path().string();
  expect_error<ArgumentError>(
      "StateCache: folder: expected one where disk_bytes is above 0, and only there, got " +
          options.folder,
      [&] { StateCache(model, options); });
  options = {};
  options.keep_every = 0;
  EXPECT_THROW(StateCache(model, options), ArgumentError);
  StateCache cache(model);
  Generator generator(model);
  expect_error<ArgumentError>("StateCache::read: prompt: expected 0 to 95, got 96", [&] {
    cache.read(generator, {1, 96});
  });
  EXPECT_EQ(generator.tokens_seen(), 0);
  generator.read({1, 2});
  expect_error<ArgumentError>(
      "StateCache::find: generator: expected one that has read nothing, got 2 tokens",
      [&] { cache.find(generator, {1}); });
  expect_error<ArgumentError>(
      "StateCache::keep: ids: expected the 2 that the generator has seen, got 1",
      [&] { cache.keep(generator, {1}); });
  const LanguageModel other = golden(model.device(), "bytes");
  Generator stranger(other);
  expect_error<ArgumentError>(
      "StateCache::find: generator: expected one of the cache's model, got one of another",
      [&] { cache.find(stranger, {1}); });
}

}  // namespace
}  // namespace mamba
