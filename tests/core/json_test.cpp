// JSON as careless writers leave it, and in any size.
#include "host/core/json.hpp"

#include <cmath>

#include <mamba/config.hpp>
#include <mamba/language_model.hpp>
#include <mamba/safetensors.hpp>
#include <mamba/tokenizer.hpp>

#include "files.hpp"
#include "linear_time.hpp"

namespace mamba {
namespace {

using testing::expect_error;
using testing::expect_linear;
using testing::golden_folder;
using testing::TemporaryFolder;

TEST(Json, WordsOfPythonAreNumbers) {
  const std::string text =
      R"({"limit":[0.0,Infinity],"low":-Infinity,"none": NaN,"NaN":"Infinity","a\"NaN":"\\","x":)"
      R"([NaN,-1,"-Infinity"]})";
  const Json json = parse_json(text, "t");
  EXPECT_EQ(json.find("limit")->elements()[1].number(), HUGE_VAL);
  EXPECT_EQ(json.find("low")->number(), -HUGE_VAL);
  EXPECT_TRUE(std::isnan(json.find("none")->number()));
  EXPECT_EQ(json.find("NaN")->text(), "Infinity");
  EXPECT_EQ(json.find("a\"NaN")->text(), "\\");
  EXPECT_TRUE(std::isnan(json.find("x")->elements()[0].number()));
  EXPECT_EQ(json.find("x")->elements()[2].text(), "-Infinity");
  std::string expected = text;
  expected.erase(expected.find(' '), 1);
  EXPECT_EQ(json.dump(), expected);
  EXPECT_EQ(parse_json(expected, "t"), json);
  EXPECT_NE(parse_json("[NaN]", "t"), parse_json("[1.5]", "t"));
  EXPECT_EQ(parse_json("Infinity", "t").number(), HUGE_VAL);
  EXPECT_EQ(describe(parse_json("[NaN]", "t").elements()[0]), "NaN");
}

TEST(Json, WordsInOtherPlacesAreErrorsAtTheirByte) {
  const auto expect = [](const std::string& text, const std::string& said) {
    expect_error<FormatError>("t: JSON: expected " + said, [&] { parse_json(text, "t"); });
  };
  expect("{NaN: NaN}", "keys in quotes, got a number for one");
  expect("[1, NaNs]", "valid JSON, got an error at byte 8");
  expect("[--Infinity]", "valid JSON, got an error at byte 3");
  expect("[NaN NaN]", "valid JSON, got an error at byte 8");
  expect("[NaN, \"Infinity", "valid JSON, got an error at byte 16");
  expect("[NaN, \"\\", "valid JSON, got an error at byte 9");
  expect("[NaN, nan]", "valid JSON, got an error at byte 8");
}

TEST(Json, ANumberWithoutEndIsNoSize) {
  const std::string start = R"({"model_type": "mamba", "num_hidden_layers": 1, "vocab_size": 8,)";
  expect_error<FormatError>("c: hidden_size: expected 1 to 2147483647, got Infinity",
                            [&] { parse_config(start + R"("hidden_size": Infinity})", "c"); });
  expect_error<FormatError>("c: layer_norm_epsilon: expected a positive number, got NaN", [&] {
    parse_config(start + R"("hidden_size": 8, "layer_norm_epsilon": NaN})", "c");
  });
  const std::string with_limit = start + R"("hidden_size": 8, "time_step_limit": [0.0, Infinity]})";
  const std::string saved = to_json(parse_config(with_limit, "c"));
  EXPECT_EQ(parse_json(saved, "t").find("time_step_limit")->dump(), "[0.0,Infinity]");
  expect_error<FormatError>(
      "c: model_type: expected mamba or falcon_mamba or mamba2, got \"zamba2\"",
      [] { parse_config(R"({"time_step_limit": [0.0, Infinity], "model_type": "zamba2"})", "c"); });
}

// ---- time -------------------------------------------------------------------------------------

// `start`, members named k0, k1, ... with a value each, `end`.
std::string members(const std::string& start, int keys, const std::string& value,
                    const std::string& end) {
  std::string text = start;
  for (int i = 0; i < keys; ++i) {
    text += i == 0 ? "" : ",";
    text += "\"k" + std::to_string(i) + "\":" + value;
  }
  return text + end;
}

TEST(JsonTime, AConfigOfManyKeysIsReadAndWrittenInLinearTime) {
  expect_linear([](int keys) {
    const std::string text =
        members(R"({"model_type":"mamba","hidden_size":8,"num_hidden_layers":1,"vocab_size":8,)",
                keys, "1", "}");
    return [text] { to_json(parse_config(text, "c")); };
  });
}

TEST(JsonTime, AnIndexOfManyTensorsIsReadInLinearTime) {
  const TemporaryFolder folder;
  std::filesystem::copy(golden_folder("sharded_bf16"), folder.file("m"));
  expect_linear([&](int keys) {
    testing::write_file(
        folder.file("m/model.safetensors.index.json"),
        members("{\"weight_map\":{", keys, "\"model-00001-of-00003.safetensors\"", "}}"));
    return [&] { EXPECT_THROW(LanguageModel::load(folder.file("m")), FormatError); };
  });
}

TEST(JsonTime, AHeaderOfManyTensorsIsReadInLinearTime) {
  const TemporaryFolder folder;
  expect_linear([&](int keys) {
    std::string header = members(
        "{\"__metadata__\":{", keys, "\"v\"",
        "}," + members("", keys, R"({"dtype":"F32","shape":[0],"data_offsets":[0,0]})", "}"));
    const std::uint64_t length = header.size();
    const std::string file(reinterpret_cast<const char*>(&length), sizeof length);
    testing::write_file(folder.file("h"), file + header);
    return [&] { SafetensorsFile(folder.file("h")); };
  });
}

TEST(JsonTime, ATokenizerOfManyKeysIsReadInLinearTime) {
  const TemporaryFolder folder;
  const std::string good = testing::read_file(golden_folder("tokenizer") + "/tokenizer.json");
  expect_linear([&](int keys) {
    const std::string more = members("{", keys, "1", ",");
    testing::write_file(folder.file("tokenizer.json"), more + good.substr(good.find('{') + 1));
    return [&] { Tokenizer::load(folder.path().string()); };
  });
}

}  // namespace
}  // namespace mamba
