// Large, deep and strange input, which fuzzers that keep theirs small do not reach: it is refused
// or read in a time that grows with its size, and what comes out is always an error of the library.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>

#include <mamba/checkpoint.hpp>
#include <mamba/config.hpp>
#include <mamba/generator.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/state_cache.hpp>
#include <mamba/state_file.hpp>
#include <mamba/tokenizer.hpp>

#include "files.hpp"
#include "host/files/atomic_file.hpp"
#include "host/text/tokenizer_tables.hpp"
#include "linear_time.hpp"
#include "testing.hpp"

namespace {
thread_local int entries_left = -1;  // readdir() fails after so many; -1: it does not
}

// Instead of the system's, which stands behind it: a folder whose disk fails halfway.
extern "C" dirent* readdir(DIR* folder) {
  using Readdir = dirent* (*)(DIR*);
  static const auto real = reinterpret_cast<Readdir>(dlsym(RTLD_NEXT, "readdir"));
  if (entries_left == 0) {
    errno = EIO;
    return nullptr;
  }
  if (entries_left > 0) --entries_left;
  return real(folder);
}

namespace mamba {
namespace {

using testing::expect_linear;
using testing::golden_folder;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

std::string object_of(int keys, const std::string& prefix, const std::string& value) {
  std::string text = "{";
  for (int i = 0; i < keys; ++i) {
    text += (i == 0 ? "\"" : ",\"") + prefix + std::to_string(i) + "\":" + value;
  }
  return text + "}";
}

std::string nested(int levels) {
  return std::string(static_cast<std::size_t>(levels), '[') +
         std::string(static_cast<std::size_t>(levels), ']');
}

// Every reader of paths, by what it is called.
std::vector<std::pair<const char*, std::function<void(const std::string&)>>> readers() {
  static const LanguageModel model = LanguageModel::load(golden_folder("one"));
  static LanguageModel trained = LanguageModel::load(golden_folder("one"));
  static const LanguageModelWeights gradients = zero_gradients(trained.config());
  static AdamW optimizer(parameters(trained, gradients));
  return {{"safetensors", [](const std::string& path) { SafetensorsFile{path}; }},
          {"state", [](const std::string& path) { load_state(path); }},
          {"generation", [](const std::string& path) { Generator::restore(path, model); }},
          {"training", [](const std::string& path) { load_training(path, optimizer, nullptr); }},
          {"tokenizer", [](const std::string& path) { Tokenizer::load(path); }},
          {"model", [](const std::string& path) { LanguageModel::load(path); }}};
}

std::vector<std::pair<const char*, std::function<void(const std::string&)>>> writers() {
  static const LanguageModel model = LanguageModel::load(golden_folder("one"));
  return {{"state", [](const std::string& path) { save(path, model.make_state(1)); }},
          {"text", [](const std::string& path) { save_text(path, "text"); }},
          {"model", [](const std::string& path) { model.save(path); }},
          {"cache", [](const std::string& path) {
             CacheOptions options;
             options.folder = path;
             options.disk_bytes = 1;
             StateCache(model, options);
           }}};
}

// ---- paths ------------------------------------------------------------------------------------

TEST(HostileFiles, PathsThatCannotBe) {
  const TemporaryFolder folder;
  const std::string long_name(300, 'n');
  std::string long_path = folder.path();
  while (long_path.size() < 5000) long_path += "/" + std::string(200, 'p');
  for (const std::string& path :
       {std::string(), folder.file(long_name), long_path, folder.file("a") + '\0' + "b",
        folder.file("none"), std::string("/dev/null/file")}) {
    for (const auto& [name, read] : readers())
      EXPECT_THROW(read(path), Error) << name << " " << path;
  }
  write_file(folder.file("file"), "text");
  for (const std::string& path : {folder.file(long_name), long_path, folder.file("file") + "/a",
                                  folder.file("a") + '\0' + "b"}) {
    for (const auto& [name, write] : writers()) {
      EXPECT_THROW(write(path), Error) << name << " " << path;
    }
  }
  EXPECT_EQ(testing::names(folder), std::vector<std::string>{"file"});
}

// Neither waits for a writer nor for bytes.
TEST(HostileFiles, FoldersPipesAndDevices) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo(folder.file("pipe").c_str(), 0600), 0);
  const std::string inside = folder.file("inside");
  for (const std::string& strange :
       {folder.file("pipe"), std::string("/dev/zero"), folder.path().string()}) {
    for (const auto& [name, read] : readers()) {
      EXPECT_THROW(read(strange), Error) << name << " " << strange;
    }
    // The same in place of each file of a folder.
    for (const char* file : {"config.json", "model.safetensors", "tokenizer.json"}) {
      std::filesystem::remove_all(inside);
      std::filesystem::copy(golden_folder("one"), inside);
      std::filesystem::copy(golden_folder("tokenizer") + "/tokenizer.json", inside);
      std::filesystem::remove(inside + "/" + file);
      std::filesystem::create_symlink(strange, inside + "/" + file);
      const bool tokenizer = std::string(file) == "tokenizer.json";
      EXPECT_THROW(tokenizer ? void(Tokenizer::load(inside)) : void(LanguageModel::load(inside)),
                   Error)
          << file << " is " << strange;
    }
  }
}

TEST(HostileFiles, EmptyAndCutAtEveryByte) {
  const TemporaryFolder folder;
  const LanguageModel model = LanguageModel::load(golden_folder("one"));
  Generator generator(model);
  generator.read({1});
  generator.save(folder.file("whole"));
  const std::string whole = read_file(folder.file("whole"));
  const std::string tokenizer = read_file(golden_folder("tokenizer") + "/tokenizer.json");
  for (std::size_t length = 0; length < whole.size(); ++length) {
    write_file(folder.file("cut"), whole.substr(0, length));
    EXPECT_THROW(load_state(folder.file("cut")), FormatError) << length;
  }
  for (std::size_t length = 0; length + 1 < tokenizer.size(); length += 101) {
    write_file(folder.file("cut"), tokenizer.substr(0, length));
    EXPECT_THROW(Tokenizer::load(folder.file("cut")), FormatError) << length;
  }
}

TEST(HostileFiles, TextsTooLargeForMemory) {
  const TemporaryFolder folder;
  const std::string path = folder.file("large");
  write_file(path, "{");
  ASSERT_EQ(truncate(path.c_str(), off_t{1} << 40), 0);  // of holes
  EXPECT_THROW(Tokenizer::load(path), FormatError);
  std::filesystem::rename(path, folder.file("config.json"));
  EXPECT_THROW(LanguageModel::load(folder.path()), FormatError);
}

// The system gives an error in the middle of a folder, which ends the list and nothing else.
TEST(HostileFiles, FoldersThatFailHalfway) {
  const LanguageModel model = LanguageModel::load(golden_folder("one"));
  const TemporaryFolder folder;
  for (const char* name : {"a", "b", "c"}) write_file(folder.file(name), "");
  CacheOptions options;
  options.folder = folder.path();
  options.disk_bytes = 1 << 20;
  for (int entries = 0; entries < 6; ++entries) {
    entries_left = entries;
    EXPECT_NO_THROW(StateCache(model, options)) << entries;
    EXPECT_EQ(entries_left, 0) << "nobody read the folder so far";
    entries_left = -1;
  }
}

// ---- JSON -------------------------------------------------------------------------------------

TEST(HostileFiles, DeepNestingIsRefused) {
  const TemporaryFolder folder;
  const std::string deep = nested(1000000);
  EXPECT_THROW(parse_config(deep, "deep"), FormatError);
  EXPECT_THROW(parse_config("{\"hidden_size\":" + deep + "}", "deep"), FormatError);
  write_file(folder.file("tokenizer.json"), deep);
  EXPECT_THROW(Tokenizer::load(folder.path()), FormatError);
}

// In linear time, as json_test.cpp shows.
TEST(HostileFiles, AHundredThousandKeysAreReadOrRefused) {
  const TemporaryFolder folder;
  const int keys = 100000;
  const std::string config = read_file(golden_folder("one") + "/config.json");
  const std::string more = object_of(keys, "k", "1");
  const std::string large = config.substr(0, config.rfind('}')) + "," + more.substr(1);
  EXPECT_GT(to_json(parse_config(large, "large")).size(), large.size());

  write_file(folder.file("config.json"), config);
  write_file(folder.file("a.safetensors"), read_file(golden_folder("one") + "/model.safetensors"));
  write_file(folder.file("model.safetensors.index.json"),
             "{\"weight_map\":" + object_of(keys, "t", "\"a.safetensors\"") + "}");
  EXPECT_THROW(LanguageModel::load(folder.path()), FormatError);

  const std::string twice = large.substr(0, large.rfind('}')) + ",\"k0\":1}";
  EXPECT_THROW(parse_config(twice, "twice"), FormatError);
}

// ---- safetensors ------------------------------------------------------------------------------

TEST(HostileFiles, HeadersOfAnyLength) {
  const TemporaryFolder folder;
  const std::string path = folder.file("header");
  for (const std::uint64_t length : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{1} << 31,
                                     std::uint64_t{1} << 63, UINT64_MAX - 7, UINT64_MAX}) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    write_file(path, bytes + "{}");
    EXPECT_THROW(SafetensorsFile{path}, FormatError) << length;
  }
}

TEST(HostileFiles, ShapesThatOverflow) {
  const TemporaryFolder folder;
  const std::string path = folder.file("shape");
  for (const char* shape :
       {"[9223372036854775807]", "[9223372036854775808]", "[4294967296,4294967296]",
        "[0,9223372036854775807,4]", "[-1]", "[1e3]", "[18446744073709551615]", "[1.5]"}) {
    const std::string header =
        std::string("{\"t\":{\"dtype\":\"F32\",\"shape\":") + shape + ",\"data_offsets\":[0,0]}}";
    std::string bytes(8, '\0');
    const std::uint64_t length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    write_file(path, bytes + header);
    EXPECT_THROW(SafetensorsFile{path}, FormatError) << shape;
  }
}

// ---- tokenizers -------------------------------------------------------------------------------

// As ICU takes it: cut where normalizing joins nothing.
TEST(HostileFiles, TextsAreNormalizedInPieces) {
  std::string text;
  for (int i = 0; i < 200; ++i) text += i % 3 == 0 ? "e\xCC\x81" : i % 3 == 1 ? "\xC3\xA9" : "a";
  for (const std::size_t most : {8u, 9u, 10u, 11u, 64u, 1000u}) {
    EXPECT_EQ(to_nfc(text, most), to_nfc(text)) << most;
  }
  std::string marks = "e";
  for (int i = 0; i < 100; ++i) marks += "\xCC\x81";
  EXPECT_THROW(to_nfc(marks, 64), ArgumentError);
}

// Marks of two kinds in turn have to change places; what is in order already has not.
TEST(HostileFiles, AlternatingMarksTakeTimeOfTheText) {
  const auto marks = [](int pairs) {
    std::string text = "a";
    for (int i = 0; i < pairs; ++i) text += "\u0301\u0F73\u0323";
    return text;
  };
  const int pairs = 1000;
  std::string below, above, vowels;
  for (int i = 0; i < pairs; ++i) {
    below += "\u0323";
    above += "\u0301";
    vowels += "\u0F71";
  }
  for (int i = 0; i < pairs; ++i) vowels += "\u0F72";
  EXPECT_EQ(to_nfc(marks(pairs)), "\u1EA1" + vowels + below.substr(2) + above);
  expect_linear([&](int size) { return [text = marks(size)] { to_nfc(text); }; });
}

// `numbers` tokens of one beginning, and `signs` of the same sign.
AddedTokens added_tokens(int numbers, int signs) {
  std::vector<AddedToken> tokens;
  for (int i = 0; i < numbers; ++i) tokens.push_back({"<" + std::to_string(i) + ">", i});
  tokens.push_back({"<1", 100000});
  tokens.push_back({"<", 100001});
  for (int i = 1; i <= signs; ++i) {
    tokens.push_back({std::string(2 * static_cast<std::size_t>(i), '='), 200000 + i});
  }
  return AddedTokens(tokens);
}

std::string text_of_tokens(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "<1x<77>";
  return text;
}

TEST(HostileFiles, ManyAddedTokensAreFoundInTimeOfTheText) {
  const AddedTokens added = added_tokens(100000, 999);
  const std::vector<AddedTokens::Match> found = added.find(text_of_tokens(10000));
  ASSERT_EQ(found.size(), 20000u);
  for (std::size_t i = 0; i < found.size(); i += 2) {
    ASSERT_EQ(found[i].id, 100000);
    ASSERT_EQ(found[i + 1].id, 77);
    ASSERT_EQ(found[i + 1].begin, found[i].begin + 3);
  }
  EXPECT_EQ(added.find("x<").at(0).id, 100001);
  EXPECT_EQ(added.find(std::string(2000001, '=')).size(), 1002u);
  // Where each token were looked for, twenty times the text and the tokens would take 400 times as
  // long.
  expect_linear([](int size) {
    const auto tokens = std::make_shared<AddedTokens>(added_tokens(size / 2, size / 200));
    return [tokens, text = text_of_tokens(size) + std::string(10 * static_cast<std::size_t>(size),
                                                              '=')] { tokens->find(text); };
  });
}

}  // namespace
}  // namespace mamba
