// What programs take on their command lines and on standard input: prompts from anywhere, nothing
// empty, nothing that cannot fit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>

#include "child.hpp"
#include "generate/bpe_model.hpp"

namespace {

using mamba::testing::BpeModel;
using mamba::testing::golden_folder;
using mamba::testing::TemporaryFolder;
using mamba::testing::write_file;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

Finished given(const Arguments& arguments, const std::string& input) {
  Child child(arguments);
  child.write(input);
  return child.finish();
}

void expect_error(const Finished& finished, const std::string& text) {
  EXPECT_EQ(finished.code, 1);
  EXPECT_EQ(finished.out, "");
  EXPECT_THAT(finished.err, HasSubstr(text));
}

class Prompt : public ::testing::Test {
 protected:
  Arguments generate(const Arguments& more) const {
    Arguments all = {"generate", folder_.path(), "--threads", "1", "-n", "2"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  TemporaryFolder folder_;
  BpeModel bpe_{folder_.path(), {"A", " and", "so", "\n", "on", "-"}};
};

TEST_F(Prompt, comesFromAFileByteForByte) {
  write_file(folder_.file("prompt"), "so\n");
  const Finished finished = run(generate({"--prompt-file", folder_.file("prompt")}));
  EXPECT_EQ(finished.out, "on-");
  EXPECT_THAT(finished.err, HasSubstr("prompt 2 tokens"));
}

TEST_F(Prompt, comesFromStandardInput) {
  for (const Arguments& flag : {Arguments{"--prompt-file", "-"}, {"--prompt", "-"}}) {
    const Finished finished = given(generate(flag), "A and");
    EXPECT_EQ(finished.out, "so\n");
    EXPECT_THAT(finished.err, HasSubstr("prompt 2 tokens"));
  }
  const std::string id = std::to_string(bpe_.ids[0]);
  EXPECT_EQ(given(generate({"--prompt-ids", "-", "--as", "text"}), id + "\n").out, " andso");
}

TEST_F(Prompt, mayBeLongerThanACommandLine) {
  std::string text;
  for (int i = 0; i < 50000; ++i) text += " and";
  const Finished finished = given(generate({"--prompt-file", "-"}), text);
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("prompt 50000 tokens"));
}

TEST_F(Prompt, idsAreTakenAsPythonAndThisProgramPrintThem) {
  const std::string a = std::to_string(bpe_.ids[0]);
  const std::string b = std::to_string(bpe_.ids[1]);
  const auto text = [&](const std::string& ids) {
    return run(generate({"--prompt-ids", ids, "--as", "text"}));
  };
  for (const std::string& ids : {a + "," + b, a + " " + b, "[" + a + ", " + b + "]",
                                 " [ " + a + " ,\n" + b + " ] \n", "[" + a + " " + b + "]"}) {
    const Finished finished = text(ids);
    EXPECT_EQ(finished.out, "so\n") << ids;
    EXPECT_THAT(finished.err, HasSubstr("prompt 2 tokens"));
  }
  for (const std::string ids :
       {"[1, 2", "1, 2]", "1,,2", "1,", "[1, [2]]", "1.5", "[1] 2", "one", "1;2", ","}) {
    expect_error(text(ids), "--prompt-ids: expected token ids: 1,2,3 or [1, 2, 3]");
  }
  for (const std::string ids : {"[]", " ", "[ ]\n"}) expect_error(text(ids), "an empty one");
}

TEST_F(Prompt, thatIsNotThereOrEmptyIsRefused) {
  expect_error(run(generate({"--prompt-file", folder_.file("none")})),
               folder_.file("none") + ": expected a file that can be read");
  expect_error(run(generate({"--prompt-file", folder_.path()})), "a file that can be read");
  write_file(folder_.file("empty"), "");
  expect_error(run(generate({"--prompt-file", folder_.file("empty")})),
               "--prompt-file: expected a prompt, got an empty one");
  expect_error(given(generate({"--prompt", "-"}), ""), "--prompt: expected a prompt");
  expect_error(run(generate({"--prompt", "a", "--prompt-file", "b"})), "--prompt");
}

TEST(EmptyArguments, areNotTakenForAbsentOnes) {
  const Arguments begun = {"generate", golden_folder("bytes"), "--prompt", "x", "-n", "1"};
  for (const char* flag : {"--save-state", "--resume", "--cache", "--draft", "--tokenizer",
                           "--device", "--dtype", "--stop"}) {
    Arguments all = begun;
    all.insert(all.end(), {flag, ""});
    expect_error(run(all), flag);
  }
  expect_error(run({"info", ""}), "MODEL: expected a value, got an empty one");
  expect_error(run({"bench", ""}), "MODEL: expected a value, got an empty one");
  expect_error(run({"generate", "--prompt="}), "--prompt");
  expect_error(run({"--lines", "--cache", ""}, place_of(MAMBA_SERVER)),
               "--cache: expected a value");
  expect_error(run({"text", "--out", ""}, place_of(TRAIN_LM)), "--out: expected a value");
  expect_error(run({"--out", ""}, place_of(MAMBA_RL)), "--out: expected a value");
}

TEST(Bench, takesAnyVocabulary) {
  for (const std::int64_t vocab : {1, 2, 5, 7}) {
    const TemporaryFolder folder;
    mamba::LanguageModelConfig config;
    config.layer.d_model = 8;
    config.n_layer = 1;
    config.vocab_size = vocab;
    mamba::LanguageModel::random(config, 1).save(folder.path());
    const Finished finished = run({"bench", folder.path(), "--prompts", "4", "--batches", "1", "-n",
                                   "2", "--repeats", "1", "--threads", "1"});
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.out, HasSubstr("| batch | decode"));
  }
}

TEST(Memory, whatCannotFitIsRefusedBeforeItIsTaken) {
  const std::string base = golden_folder("base");
  const char* fits = "of memory of this machine, got ";
  expect_error(run({"bench", base, "--batches", "1000000000"}), fits);
  expect_error(run({"bench", base, "--prompts", "1000000000000"}), fits);
  expect_error(run({"--capacity", "1000000000"}, place_of(MAMBA_SERVER)), fits);

  const TemporaryFolder folder;
  mamba::LanguageModelConfig large;
  large.layer.d_model = 1 << 16;
  large.n_layer = 1;
  large.vocab_size = 1 << 30;
  write_file(folder.file("config.json"), to_json(large));
  expect_error(run({"bench", folder.path(), "--random-weights"}), fits);

  const std::string big = folder.file("big");
  mamba::LanguageModelConfig wide;
  wide.layer.d_model = 8;
  wide.n_layer = 1;
  wide.vocab_size = 1 << 19;
  mamba::LanguageModel::random(wide, 1).save(big);
  const std::int64_t rows = 1 << 12;  // with as many logits: 8 TiB
  mamba::save_safetensors(
      folder.file("ids"),
      {{"input_ids", mamba::Tensor::zeros({rows, 1 << 10}, mamba::DType::i32)}});
  expect_error(run({"logits", big, "--tokens", folder.file("ids"), "--out", folder.file("out")}),
               fits);
}

}  // namespace
