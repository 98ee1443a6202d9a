// mamba-rl as its user sees it: it learns, stops, goes on, and says what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "child.hpp"
#include "files.hpp"

namespace {

namespace fs = std::filesystem;
using mamba::testing::read_file;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

class MambaRl : public ::testing::Test {
 protected:
  std::string file(const std::string& name) const { return folder_.file(name); }
  // A small run; flags of `more` win.
  Finished agent(const std::string& out, const Arguments& more) {
    Arguments all = {"--horizon",   "6",       "--num-envs",   "8", "--width", "16",
                     "--out",       file(out), "--threads",    "1", "--seed",  "3",
                     "--eval-envs", "32",      "--eval-every", "4"};
    all.insert(all.end(), more.begin(), more.end());
    return run(all, MAMBA_RL);
  }
  // What a checkpoint holds behind its header, whose seconds differ.
  static std::string tensors_of(const std::string& checkpoint) {
    const std::string bytes = read_file(checkpoint);
    return bytes.substr(bytes.find("}}"));
  }
  void expect_error(const Finished& finished, const std::string& text) {
    EXPECT_NE(finished.code, 0);
    EXPECT_THAT(finished.err, HasSubstr(text));
  }

  mamba::testing::TemporaryFolder folder_;
};

TEST_F(MambaRl, WritesMetricsAndStops) {
  const Finished finished = agent("run", {"--total-updates", "8"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("8/8"));
  EXPECT_THAT(finished.err, HasSubstr("% greedy"));
  const std::string metrics = read_file(file("run/metrics.jsonl"));
  for (const char* key : {"update", "env_steps", "horizon", "train_success", "eval_success",
                          "steps_per_s", "seconds", "delay", "eval_sampled"}) {
    EXPECT_THAT(metrics, HasSubstr("\"" + std::string(key) + "\": "));
  }
  EXPECT_TRUE(fs::exists(file("run/checkpoint")));
}

TEST_F(MambaRl, ResumedIsTheSameToTheByte) {
  for (const std::string controller : {"mamba", "gru"}) {
    const Arguments flags = {"--controller", controller, "--total-updates", "9"};
    const auto with = [&](Arguments more) {
      more.insert(more.end(), flags.begin(), flags.end());
      return more;
    };
    EXPECT_EQ(agent("whole" + controller, flags).code, 0);
    EXPECT_EQ(agent("parts" + controller, with({"--stop-at", "5"})).code, 0);
    const Finished resumed = agent("parts" + controller, with({"--resume"}));
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    const auto tensors = [&](const std::string& run_name) {
      return tensors_of(file(run_name + controller + "/checkpoint"));
    };
    EXPECT_FALSE(tensors("whole").empty());
    EXPECT_EQ(tensors("whole"), tensors("parts"));
  }
}

TEST_F(MambaRl, ScaleRunsEveryControllerAndGoesOn) {
  const Arguments scale = {"--mode",  "scale", "--horizons",      "3", "5",
                           "--seeds", "2",     "--total-updates", "2"};
  const Finished finished = agent("scale", scale);
  EXPECT_EQ(finished.code, 0) << finished.err;
  for (const char* name : {"mamba-3-3", "mamba-5-4", "gru-3-4", "gru-5-3"}) {
    EXPECT_TRUE(fs::exists(file("scale/" + std::string(name) + "/checkpoint"))) << name;
  }
  Arguments at_once = scale;
  at_once.insert(at_once.end(), {"--jobs", "3"});
  EXPECT_EQ(agent("at_once", at_once).code, 0);
  for (const char* name : {"mamba-3-3", "gru-5-4"}) {
    const auto weights = [&](const char* run_name) {
      return tensors_of(file(std::string(run_name) + "/" + name + "/checkpoint"));
    };
    EXPECT_EQ(weights("scale"), weights("at_once")) << name;
  }
  const std::string before = read_file(file("scale/metrics.jsonl"));
  Arguments again = scale;
  again.push_back("--resume");
  EXPECT_EQ(agent("scale", again).code, 0);
  EXPECT_EQ(read_file(file("scale/metrics.jsonl")), before);  // nothing was left to do
}

TEST_F(MambaRl, EvaluatesElsewhere) {
  EXPECT_EQ(agent("run", {"--total-updates", "2"}).code, 0);
  const Finished finished = agent("run", {"--mode", "evaluate", "--horizons", "6", "30"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(read_file(file("run/evaluations.jsonl")), HasSubstr("\"evaluated_at\": 30"));
}

TEST_F(MambaRl, WhatCannotBeIsNamed) {
  expect_error(agent("run", {"--horizon", "0"}), "--horizon");
  expect_error(agent("run", {"--num-bits", "17"}), "--num-bits");
  expect_error(agent("run", {"--controller", "lstm"}), "--controller");
  expect_error(run({"--out", file("run")}, MAMBA_RL), "--horizon");
  expect_error(agent("run", {"--mode", "scale"}), "--horizons");
  expect_error(agent("run", {"--resume"}), "checkpoint");
  expect_error(agent("run", {"--chunk-len", "100000000"}), "bytes");
  EXPECT_EQ(agent("run", {"--total-updates", "1"}).code, 0);
  expect_error(agent("run", {"--resume", "--num-envs", "9"}), "checkpoint");
  expect_error(agent("run", {"--resume", "--horizon", "7"}), "horizon 7");
  expect_error(agent("run", {"--resume", "--controller", "gru"}), "checkpoint");
  std::ofstream(file("taken")) << "a file";
  expect_error(agent("taken", {}), "taken");
}

}  // namespace
