// Text to ids and back, held against Hugging Face's tokenizers (golden/make_tokenizer.py).
#include <mamba/tokenizer.hpp>

#include <mamba/error.hpp>

#include "testing.hpp"
#include "text/tokenizer_golden.hpp"

namespace mamba {
namespace {

using testing::each_line;
using testing::expect_error;
using testing::golden;
using testing::Ids;
using testing::parsed;
using testing::unescaped;

// All of `bytes` through a TextStream, `count` at a time.
std::string streamed(const std::string& bytes, std::size_t count) {
  TextStream stream;
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += count) text += stream.push(bytes.substr(i, count));
  return text + stream.finish();
}

TEST(TokenizerTest, EncodesAsHuggingFaceDoes) {
  const Tokenizer tokenizer = golden();
  EXPECT_EQ(tokenizer.vocab_size(), 726);
  int wrong = 0;
  const int lines = each_line("encoded.txt", [&](const std::string& text, const std::string& ids) {
    if (wrong > 10) return;
    const bool same = tokenizer.encode(unescaped(text)) == parsed(ids);
    EXPECT_TRUE(same) << text << "\nexpected " << ids;
    wrong += same ? 0 : 1;
  });
  EXPECT_GT(lines, 3000);
}

// Runs of blanks alone are added tokens of this file, as of the published one; mixed ones are not.
TEST(TokenizerTest, TheLastOfSeveralBlanksMayBeginTheWord) {
  const Tokenizer tokenizer = golden();
  const auto joined = [&](const std::vector<std::string>& words) {
    std::vector<std::int32_t> ids;
    for (const std::string& word : words) {
      for (const std::int32_t id : tokenizer.encode(word)) ids.push_back(id);
    }
    return ids;
  };
  EXPECT_EQ(tokenizer.encode("\n state"), joined({"\n", " state"}));
  EXPECT_EQ(tokenizer.encode("a\t\n state"), joined({"a", "\t\n", " state"}));
  EXPECT_EQ(tokenizer.encode(" \nstate"), joined({" ", "\n", "state"}));
  EXPECT_EQ(tokenizer.encode("a\n "), joined({"a", "\n "}));
  EXPECT_NE(joined({"\n", " state"}), joined({"\n ", "state"}));
}

TEST(TokenizerTest, DecodesAsHuggingFaceDoes) {
  const Tokenizer tokenizer = golden();
  const int lines = each_line("decoded.txt", [&](const std::string& ids, const std::string& text) {
    EXPECT_EQ(streamed(tokenizer.decode(parsed(ids)), 1000), unescaped(text)) << ids;
  });
  EXPECT_GT(lines, 1000);
}

// A text that is in NFC and UTF-8 comes back byte for byte.
TEST(TokenizerTest, TextComesBack) {
  const Tokenizer tokenizer = golden();
  int same = 0;
  const int lines = each_line("encoded.txt", [&](const std::string& line, const std::string&) {
    const std::string text = unescaped(line);
    const std::string back = tokenizer.decode(tokenizer.encode(text));
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(back)), back) << line;
    same += back == text ? 1 : 0;
  });
  EXPECT_GT(same, lines / 2);
}

TEST(TokenizerTest, AMergedWordOfAMillionLettersTakesNoQuadraticTime) {
  const Ids ids = golden().encode(std::string(1 << 20, 'e'));
  EXPECT_EQ(golden().decode(ids).size(), std::size_t{1} << 20);
}

TEST(TokenizerTest, BytesAreIds) {
  const Tokenizer bytes = Tokenizer::bytes();
  EXPECT_EQ(bytes.vocab_size(), 256);
  EXPECT_EQ(bytes.encode("a\xff\n"), (Ids{97, 255, 10}));
  EXPECT_EQ(bytes.decode({97, 255, 10}), "a\xff\n");
}

TEST(TokenizerTest, IdsWithoutATokenShowAsReplacements) {
  EXPECT_EQ(golden().decode({726, 100000}), "\uFFFD\uFFFD");
  EXPECT_EQ(Tokenizer::bytes().decode({256}), "\uFFFD");
  expect_error<ArgumentError>("Tokenizer::decode: ids: expected at least 0, got -1", [] {
    golden().decode({1, -1});
  });
}

// ---- streams ------------------------------------------------------------------------------------

// Whole characters come out as soon as they are there, and never a part of one.
TEST(TextStreamTest, EmitsWholeCharactersOnly) {
  TextStream stream;
  EXPECT_EQ(stream.push("a\xE4"), "a");
  EXPECT_EQ(stream.push("\xBD"), "");
  EXPECT_EQ(stream.held(), "\xE4\xBD");
  EXPECT_EQ(stream.push("\xA0\xF0\x9F\x98\x80z"), "你😀z");
  EXPECT_EQ(stream.push("\xF0\x9F\x98"), "");
  TextStream later(stream.held());  // in another process
  EXPECT_EQ(later.push("\x80"), "😀");
  EXPECT_EQ(later.finish(), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
  EXPECT_EQ(stream.finish(), "");
}

// However the bytes are cut, the text is the same, and every part of it is UTF-8.
TEST(TextStreamTest, AnyCutGivesTheSameText) {
  each_line("encoded.txt", [&](const std::string& line, const std::string&) {
    const std::string bytes = unescaped(line);
    const std::string whole = streamed(bytes, 1 << 20);
    for (std::size_t count : {1, 2, 3, 5}) EXPECT_EQ(streamed(bytes, count), whole) << line;
    EXPECT_EQ(streamed(whole, 1), whole) << line;
  });
}

}  // namespace
}  // namespace mamba
