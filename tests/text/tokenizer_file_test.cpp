// The tokenizer.json files that are read, and what is said of the others.
#include <mamba/tokenizer.hpp>

#include <mamba/error.hpp>

#include "files.hpp"
#include "testing.hpp"
#include "text/tokenizer_golden.hpp"

namespace mamba {
namespace {

using testing::each_line;
using testing::expect_error;
using testing::golden;
using testing::golden_folder;
using testing::Ids;
using testing::parsed;
using testing::TemporaryFolder;
using testing::unescaped;
using testing::write_file;

// What the golden file says of how a text is cut.
const std::string byte_level =
    R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true})";

// The member of this name in `object`, as it is written there; nothing if there is none.
std::string member(const std::string& object, const std::string& name) {
  const std::size_t begin = object.find("\"" + name + "\":");
  if (begin == std::string::npos) return "";
  int depth = 0;
  bool quoted = false;
  for (std::size_t at = begin; at < object.size(); ++at) {
    const char c = object[at];
    if (c == '\\' && quoted) {
      ++at;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && depth == 0 && (c == ',' || c == '}')) {
      return object.substr(begin, at - begin);
    } else if (!quoted) {
      depth += c == '{' || c == '[' ? 1 : c == '}' || c == ']' ? -1 : 0;
    }
  }
  return object.substr(begin);
}

class TokenizerFile : public ::testing::Test {
 protected:
  TokenizerFile() : text_(testing::read_file(golden_folder("tokenizer/tokenizer.json"))) {}

  // The golden file with one change.
  void write(const std::string& from, const std::string& to) const {
    const std::size_t at = text_.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file(path(), text_.substr(0, at) + to + text_.substr(at + from.size()));
  }
  void expect_refused(const std::string& from, const std::string& to,
                      const std::string& error) const {
    write(from, to);
    expect_error<FormatError>(path() + ": " + error, [&] { Tokenizer::load(path()); });
  }
  std::string path() const { return folder_.file("tokenizer.json"); }

  TemporaryFolder folder_;
  std::string text_;
};

TEST_F(TokenizerFile, OfAnotherPipelineIsRefusedByName) {
  expect_refused(R"("type":"NFC")", R"("type":"NFKC")",
                 R"(normalizer.type: expected NFC or a Sequence of it, got "NFKC")");
  expect_refused(R"("normalizer":{"type":"NFC"})",
                 R"("normalizer":{"type":"Sequence","normalizers":[{"type":"Lowercase"}]})",
                 R"(normalizer.normalizers[0].type: expected NFC or a Sequence of it, got )"
                 R"("Lowercase")");
  expect_refused(R"("decoder":{"type":"ByteLevel")", R"("decoder":{"type":"WordPiece")",
                 R"(decoder.type: expected "ByteLevel", got "WordPiece")");
  expect_refused(R"("type":"BPE")", R"("type":"Unigram")",
                 R"(model.type: expected "BPE", got "Unigram")");
  expect_refused(R"("byte_fallback":false)", R"("byte_fallback":true)",
                 "model.byte_fallback: expected false, got true");
  expect_refused(R"("dropout":null)", R"("dropout":0.5)", "model.dropout: expected 0.0, got 0.5");
  expect_refused(R"("lstrip":false)", R"("lstrip":true)",
                 "added_tokens[0].lstrip: expected false, got true");
}

TEST_F(TokenizerFile, OfAnotherPreTokenizerIsRefusedByName) {
  const auto expect = [&](const std::string& pre_tokenizer, const std::string& error) {
    expect_refused(byte_level, R"("pre_tokenizer":)" + pre_tokenizer, "pre_tokenizer" + error);
  };
  expect(R"({"type":"Metaspace"})",
         R"(.type: expected ByteLevel, Split, Digits, Punctuation or a Sequence of them, got )"
         R"("Metaspace")");
  expect("null",
         ".type: expected ByteLevel, Split, Digits, Punctuation or a Sequence of them, got "
         "nothing");
  expect(R"({"type":"Digits"})", ": expected ByteLevel, or a Sequence with it, got none");
  const std::string bytes = R"({"type":"ByteLevel","add_prefix_space":false})";
  expect(R"({"type":"Sequence","pretokenizers":[)" + bytes + "," + bytes + "]}",
         ".pretokenizers[1].type: expected one ByteLevel, got another");
  expect(R"({"type":"Punctuation","behavior":"Kept"})",
         ".behavior: expected Removed, Isolated, MergedWithPrevious, MergedWithNext or "
         R"(Contiguous, got "Kept")");
  expect(R"({"type":"Split","behavior":"Isolated","pattern":{"String":""}})",
         ".pattern: expected a String or Regex with text, got an object");
  expect(R"({"type":"Split","behavior":"Isolated","pattern":{"Regex":"a(?=b"}})",
         R"(.pattern.Regex: expected a regular expression without a group that does not end, got )"
         R"("a(?=b")");
  std::string many = R"({"type":"Digits"})";
  for (int i = 0; i < 100; ++i) many += R"(,{"type":"Digits"})";
  expect(R"({"type":"Sequence","pretokenizers":[)" + many + "]}",
         ": expected at most 100 steps, got more");
}

TEST_F(TokenizerFile, OfAnotherPostProcessorIsRefusedByName) {
  const std::string before = R"("post_processor":{"type":"ByteLevel")";
  const auto expect = [&](const std::string& members, const std::string& error) {
    expect_refused(before, R"("post_processor":{"type":"TemplateProcessing")" + members,
                   "post_processor." + error);
  };
  expect_refused(before, R"("post_processor":{"type":"RobertaProcessing")",
                 "post_processor.type: expected ByteLevel, TemplateProcessing or a Sequence of "
                 R"(them, got "RobertaProcessing")");
  expect("", "single: expected a list, got nothing");
  expect(R"(,"single":[])", "single: expected the Sequence A, got none");
  const std::string a = R"({"Sequence":{"id":"A","type_id":0}})";
  const std::string special = R"({"SpecialToken":{"id":"x","type_id":0}})";
  expect(R"(,"single":[)" + a + "," + a + "]",
         "single[1]: expected a SpecialToken or, once, the Sequence A, got an object");
  const std::string one = R"({"type":"TemplateProcessing","single":[)" + a + "]}";
  expect_refused(member(text_, "post_processor"),
                 R"("post_processor":{"type":"Sequence","processors":[)" + one + "," + one + "]}",
                 "post_processor.processors[1].type: expected one TemplateProcessing, got another");
  expect(R"(,"single":[)" + special + "," + a + R"(],"special_tokens":{})",
         "single[0].SpecialToken.id: expected one of post_processor.special_tokens, got \"x\"");
  expect(R"(,"single":[)" + special + "," + a + R"(],"special_tokens":{"x":{"ids":[5000]}})",
         "special_tokens[\"x\"].ids: expected ids of tokens, got 5000");
}

TEST_F(TokenizerFile, ThatIsBrokenIsRefusedByName) {
  write_file(path(), text_.substr(0, text_.size() / 2));
  EXPECT_THROW(Tokenizer::load(path()), FormatError);
  write_file(path(), "[]");
  expect_error<FormatError>(path() + ": JSON: expected an object, got a list",
                            [&] { Tokenizer::load(folder_.path().string()); });
  expect_refused(R"("vocab":{)", R"("vocab":[],"other":{)",
                 "model.vocab: expected an object, got a list");
  expect_refused(R"("!":)", R"("!!!!":)",
                 "model.vocab: expected a token for every printable character of ASCII, got none "
                 "for 0x21");
  expect_refused(R"("!":2)", R"("!":3)",
                 R"("\"": expected an id of its own, got 3, another token's)");
  expect_refused(R"("!":2)", R"("!":-2)", R"("!": expected an id, 0 to 2147483646, got -2)");
  expect_refused(R"("merges":[)", R"("merges":["a b c",)",
                 R"(model.merges[0]: expected two tokens, got "a b c")");
  expect_refused(R"("merges":[)", R"("merges":["z zz",)",
                 R"(model.merges[0]: expected tokens of model.vocab, got "zzz")");
  expect_refused(R"("id":0,)", R"("id":5,)",
                 "added_tokens[0].id: expected 0, its id in model.vocab, got 5");
  expect_refused(R"("content":"<|padding|>")", R"("content":"")",
                 R"(added_tokens[1].content: expected text, got "")");
  expect_error<Error>("Tokenizer::load: " + folder_.file("none") +
                          ": expected a file that can be read, got No such file or directory",
                      [&] { Tokenizer::load(folder_.file("none")); });
}

// Merges used to be one string, with a blank between the two tokens.
TEST_F(TokenizerFile, OfOlderFormIsRead) {
  const std::size_t first = text_.find("\"merges\":[") + 10;
  std::string older = text_.substr(0, first);
  bool quoted = false;
  for (std::size_t at = first; at < text_.size(); ++at) {
    const std::string rest = text_.substr(at, 3);
    if (quoted && rest[0] == '\\') {
      older += text_.substr(at++, 2);
    } else if (quoted && rest == "\",\"") {
      older += ' ';
      at += 2;
    } else if (quoted || (rest.substr(0, 2) != "[\"" && rest.substr(0, 2) != "],")) {
      quoted = rest[0] == '"' ? !quoted : quoted;
      older += rest[0];
    }
  }
  older.replace(older.find("]]}}"), 4, "]}}");
  write_file(path(), older);
  const Tokenizer tokenizer = Tokenizer::load(path());
  each_line("encoded.txt", [&](const std::string& text, const std::string& ids) {
    EXPECT_EQ(tokenizer.encode(unescaped(text)), parsed(ids)) << text;
  });
}

// The golden file as a pipeline of pipelines.txt changes it.
std::string changed(std::string text, const std::string& pipeline) {
  const auto replace = [&](const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
  };
  for (const char* name : {"normalizer", "pre_tokenizer", "post_processor"}) {
    const std::string to = member(pipeline, name);
    if (!to.empty()) replace(member(text, name), to);
  }
  if (!member(pipeline, "ignore_merges").empty()) {
    replace(R"("ignore_merges":false)", R"("ignore_merges":true)");
    const std::size_t first = text.find("\"merges\":[") + 10;
    std::size_t end = first;
    for (int i = 0; i < 60; ++i) end = text.find("],[", end) + 2;
    text.erase(first, end - first);
  }
  return text;
}

TEST_F(TokenizerFile, OtherPipelinesGiveWhatHuggingFaceDoes) {
  int pipelines = 0;
  int wrong = 0;
  std::string pipeline;
  Tokenizer tokenizer = Tokenizer::bytes();
  each_line("pipelines.txt", [&](const std::string& text, const std::string& other) {
    if (text == "\\pipeline") {
      ++pipelines;
      wrong = 0;
      pipeline = other;
      write_file(path(), changed(text_, pipeline));
      tokenizer = Tokenizer::load(path());
    } else if (wrong < 3) {
      const bool same = tokenizer.encode(unescaped(text)) == parsed(other);
      EXPECT_TRUE(same) << pipeline << "\n" << text << "\nexpected " << other;
      wrong += same ? 0 : 1;
    }
  });
  EXPECT_GT(pipelines, 25);
}

TEST_F(TokenizerFile, SpecialTokensGoAroundTheBeginningOfATextAlone) {
  write(R"("post_processor":{"type":"ByteLevel")",
        R"("post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"b"}},)"
        R"({"Sequence":{"id":"A"}},{"SpecialToken":{"id":"e"}}],)"
        R"("special_tokens":{"b":{"ids":[1,0]},"e":{"ids":[0]}})");
  const Tokenizer tokenizer = Tokenizer::load(path());
  EXPECT_EQ(tokenizer.encode(""), (Ids{1, 0, 0}));
  EXPECT_EQ(tokenizer.encode("", /*special_tokens=*/false), Ids{});
  EXPECT_EQ(tokenizer.encode("the state", false), golden().encode("the state"));
}

// Falcon's file has no token for some control characters: Hugging Face leaves them out.
TEST_F(TokenizerFile, BytesWithoutATokenAreLeftOut) {
  write("\"\u0103\":", "\"\u0103\u0103\u0103\":");
  const Tokenizer tokenizer = Tokenizer::load(path());
  EXPECT_EQ(tokenizer.encode("the\x03"), golden().encode("the"));
  text_ = testing::read_file(path());
  expect_refused(R"("unk_token":null)", R"("unk_token":"?")",
                 R"(model.unk_token: expected null, or a token for every byte, got "?")");
}

// They do not say how a text is cut: GPT-2's and Qwen's look alike.
TEST_F(TokenizerFile, VocabularyAndMergesAloneAreNotEnough) {
  write_file(folder_.file("vocab.json"), "{}");
  write_file(folder_.file("merges.txt"), "");
  expect_error<FormatError>(
      "Tokenizer::load: " + folder_.path().string() +
          ": expected tokenizer.json, got vocab.json and merges.txt, which do not say how a text "
          "is "
          "cut (Python's transformers make one: AutoTokenizer.from_pretrained(\"" +
          folder_.path().string() + "\").save_pretrained(\"" + folder_.path().string() + "\"))",
      [&] { Tokenizer::load(folder_.path().string()); });
}

// A regular expression that goes back and forth gives up, and does so soon.
TEST_F(TokenizerFile, ExpressionsThatTakeTooLongAreAnError) {
  for (const char* pattern : {"(?:a|a)*b", "(?:a+)+b", "(?:a|aa)+$"}) {
    write(byte_level, std::string(R"("pre_tokenizer":{"type":"Sequence","pretokenizers":[)") +
                          R"({"type":"Split","behavior":"Isolated","pattern":{"Regex":")" +
                          pattern + R"("}},{"type":"ByteLevel","add_prefix_space":false}]})");
    const Tokenizer tokenizer = Tokenizer::load(path());
    EXPECT_EQ(tokenizer.decode(tokenizer.encode("cab")), "cab");
    EXPECT_THROW(tokenizer.encode(std::string(200, 'a') + "c"), ArgumentError) << pattern;
  }
}

TEST_F(TokenizerFile, DamageIsRefusedOrHarmless) {
  const int refused = testing::count_refused(
      folder_, text_, text_.size(), 300, [](const std::string& path) { Tokenizer::load(path); });
  EXPECT_GT(refused, 50);
}

}  // namespace
}  // namespace mamba
