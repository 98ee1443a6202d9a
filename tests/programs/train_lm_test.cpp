// train-lm as its user sees it: it learns, stops, goes on, and says what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "child.hpp"

namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class TrainLm : public ::testing::Test {
 protected:
  TrainLm() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() /
              (std::string("train_lm_") + test->name() + "_" + std::to_string(getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::string text;
    for (int i = 0; i < 200; ++i) text += "one two three four five six seven. ";
    write("text", text);
  }
  ~TrainLm() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const std::string& bytes) {
    std::ofstream(file(name), std::ios::binary) << bytes;
  }
  Finished train(const std::string& out, const Arguments& more, const std::string& text = "text") {
    Arguments all = {file(text), "--out",     file(out), "--d-model", "16", "--layers",
                     "2",        "--d-state", "4",       "--batch",   "4",  "--time",
                     "32",       "--warmup",  "5",       "--steps",   "30", "--rate",
                     "0.01",     "--threads", "1"};
    all.insert(all.end(), more.begin(), more.end());
    return run(all, TRAIN_LM);
  }
  void expect_error(const Finished& finished, const std::string& text) {
    EXPECT_NE(finished.code, 0);
    EXPECT_THAT(finished.err, HasSubstr(text));
  }

  fs::path folder_;
};

TEST_F(TrainLm, LearnsAndWritesAModelThatMambaLmReads) {
  const Finished finished = train("run", {"--valid-every", "10"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("step 10: validation"));
  EXPECT_THAT(finished.err, HasSubstr("30/30"));
  const std::string metrics = read(file("run/metrics.jsonl"));
  EXPECT_THAT(metrics, HasSubstr("{\"step\": 1, \"loss\": 5.5"));  // log(256) = 5.545
  EXPECT_THAT(metrics, HasSubstr("{\"step\": 30, \"valid_bits_per_byte\": "));
  const std::string last = metrics.substr(metrics.rfind("bits_per_byte\": ") + 16);
  EXPECT_LT(std::stod(last), 4);
  const Finished text = run({"generate", file("run"), "--prompt", "one two", "-n", "9"});
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_EQ(text.out.size(), 9u);
}

TEST_F(TrainLm, ResumedIsTheSameToTheByte) {
  for (const std::string dtype : {"f32", "bf16"}) {
    EXPECT_EQ(train("whole" + dtype, {"--dtype", dtype}).code, 0);
    EXPECT_EQ(train("parts" + dtype, {"--dtype", dtype, "--stop-at", "13"}).code, 0);
    EXPECT_NE(read(file("parts" + dtype + "/model.safetensors")),
              read(file("whole" + dtype + "/model.safetensors")));
    const Finished resumed = train("parts" + dtype, {"--dtype", dtype, "--resume"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    for (const char* name : {"/model.safetensors", "/checkpoint", "/config.json"}) {
      EXPECT_EQ(read(file("parts" + dtype + name)), read(file("whole" + dtype + name))) << name;
    }
  }
}

TEST_F(TrainLm, AFolderIsItsFilesAndASeparatorCutsThem) {
  fs::create_directories(folder_ / "texts");
  write("texts/a", std::string(500, 'a') + "@@" + std::string(500, 'b'));
  write("texts/b", std::string(500, 'c'));
  EXPECT_THAT(train("one", {"--steps", "1"}, "texts").err, HasSubstr("in 2 documents"));
  EXPECT_THAT(train("two", {"--steps", "1", "--separator", "@@"}, "texts").err,
              HasSubstr("in 3 documents"));
}

TEST_F(TrainLm, WhatCannotBeIsNamed) {
  write("empty", "");
  expect_error(train("run", {}, "empty"), "expected text to train on and to validate with, got 0");
  expect_error(train("run", {}, "nowhere"), "expected a file or folder, got nothing");
  expect_error(train("run", {"--resume"}), "checkpoint");
  EXPECT_EQ(train("run", {"--steps", "2"}).code, 0);
  expect_error(train("run", {"--resume", "--batch", "5"}), "checkpoint");
  write("other", read(file("text")) + "more");
  expect_error(train("run", {"--resume"}, "other"), "expected text");
  std::string bytes = read(file("run/checkpoint"));
  write("run/checkpoint", bytes.substr(0, bytes.size() - 5));
  expect_error(train("run", {"--resume"}), "run/checkpoint: ");
}

// A rate that no training survives: the run stops, names the step, and the checkpoint stays.
TEST_F(TrainLm, ALossThatIsNotFiniteStopsTheRunAndKeepsTheCheckpoint) {
  EXPECT_EQ(train("run", {"--stop-at", "5"}).code, 0);
  const std::string before = read(file("run/checkpoint"));
  const Finished broken = train("run", {"--resume", "--rate", "1e30", "--clip", "0"});
  expect_error(broken, "expected a finite loss and gradient, got a loss of ");
  EXPECT_THAT(broken.err, HasSubstr("train-lm: step "));
  EXPECT_EQ(read(file("run/checkpoint")), before);
}

}  // namespace
