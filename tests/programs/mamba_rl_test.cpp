// mamba-rl as its user sees it: it learns, stops, goes on, and says what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "child.hpp"
#include "files.hpp"

namespace {

namespace fs = std::filesystem;
using mamba::testing::read_file;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

class MambaRl : public ProgramTest {
 protected:
  template <class Body>
  void everywhere(Body body) {
    ProgramTest::everywhere([&] {
      mamba::testing::clear(folder_);  // a run is never overwritten
      body();
    });
  }
  std::string file(const std::string& name) const { return folder_.file(name); }
  // A small run; flags of `more` win.
  Arguments flags_of(const std::string& out, const Arguments& more) {
    Arguments all = {"--num-envs",   "8", "--width", "16", "--out",       file(out),
                     "--threads",    "1", "--seed",  "3",  "--eval-envs", "32",
                     "--eval-every", "4"};
    all.insert(all.end(), on_.begin(), on_.end());
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Finished agent(const std::string& out, Arguments more) {
    more.insert(more.begin(), {"--horizon", "6"});
    return run(flags_of(out, more), place_of(MAMBA_RL));
  }
  Finished agents(const std::string& out, Arguments more) {
    more.insert(more.begin(), {"--mode", "scale"});
    return run(flags_of(out, more), place_of(MAMBA_RL));
  }
  std::size_t lines_of(const std::string& name) const {
    const std::string text = read_file(file(name));
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
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
  everywhere([&] {
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
  });
}

TEST_F(MambaRl, MetricsNameTheTask) {
  for (const std::string task : {"cue", "bandit", "repeat", "t-maze"}) {
    EXPECT_EQ(agent(task, {"--task", task, "--total-updates", "1"}).code, 0);
    EXPECT_THAT(read_file(file(task + "/metrics.jsonl")), HasSubstr("\"task\": \"" + task + "\""));
  }
}

TEST_F(MambaRl, ResumedIsTheSameToTheByte) {
  everywhere([&] {
    for (const std::string controller : {"mamba", "mamba2", "gru"}) {
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
  });
}

TEST_F(MambaRl, ScaleRunsEveryControllerAndGoesOn) {
  everywhere([&] {
    const Arguments scale = {"--horizons", "3", "5", "--seeds", "2", "--total-updates", "2"};
    const Finished finished = agents("scale", scale);
    EXPECT_EQ(finished.code, 0) << finished.err;
    for (const char* name : {"mamba-3-3", "mamba-5-4", "gru-3-4", "gru-5-3"}) {
      EXPECT_TRUE(fs::exists(file("scale/" + std::string(name) + "/checkpoint"))) << name;
    }
    Arguments at_once = scale;
    at_once.insert(at_once.end(), {"--jobs", "3"});
    EXPECT_EQ(agents("at_once", at_once).code, 0);
    for (const char* name : {"mamba-3-3", "gru-5-4"}) {
      const auto weights = [&](const char* run_name) {
        return tensors_of(file(std::string(run_name) + "/" + name + "/checkpoint"));
      };
      EXPECT_EQ(weights("scale"), weights("at_once")) << name;
    }
    const std::string before = read_file(file("scale/metrics.jsonl"));
    Arguments again = scale;
    again.push_back("--resume");
    EXPECT_EQ(agents("scale", again).code, 0);
    EXPECT_EQ(read_file(file("scale/metrics.jsonl")), before);  // nothing was left to do
  });
}

TEST_F(MambaRl, AFinishedRunGoesOnOnlyWithMoreUpdates) {
  EXPECT_EQ(agent("run", {"--total-updates", "2"}).code, 0);
  const Finished same = agent("run", {"--total-updates", "2", "--resume"});
  EXPECT_EQ(same.code, 0);
  EXPECT_THAT(same.err, HasSubstr("nothing to do"));
  EXPECT_EQ(lines_of("run/metrics.jsonl"), 2u);
  EXPECT_EQ(agent("run", {"--total-updates", "5", "--resume"}).code, 0);
  EXPECT_EQ(lines_of("run/metrics.jsonl"), 5u);
}

TEST_F(MambaRl, ARunIsNeverOverwritten) {
  EXPECT_EQ(agent("run", {"--total-updates", "2"}).code, 0);
  const std::string metrics = read_file(file("run/metrics.jsonl"));
  const std::string checkpoint = read_file(file("run/checkpoint"));
  expect_error(agent("run", {"--total-updates", "2"}), "--resume");
  expect_error(agents("run", {"--horizons", "3"}), "--resume");
  expect_error(agent("run", {"--resume", "--num-envs", "2"}), "minibatches");
  EXPECT_EQ(read_file(file("run/metrics.jsonl")), metrics);
  EXPECT_EQ(read_file(file("run/checkpoint")), checkpoint);
}

// Most updates then see no query at all, which says nothing of how well the agent does.
TEST_F(MambaRl, TheCurriculumGoesOnWithChunksShorterThanAnEpisode) {
  const Finished finished =
      agent("run", {"--controller", "gru", "--chunk-len", "2", "--num-bits", "1", "--num-envs",
                    "64", "--eval-every", "1000", "--total-updates", "300"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  const std::string metrics = read_file(file("run/metrics.jsonl"));
  EXPECT_THAT(metrics, HasSubstr("\"delay\": 4"));
  EXPECT_THAT(metrics, HasSubstr("\"queries\": 0"));
  EXPECT_THAT(metrics, HasSubstr("\"delay\": 6"));
}

class MambaRlSignals : public MambaRl, public ::testing::WithParamInterface<int> {};

TEST_P(MambaRlSignals, SaveWhatThereIs) {
  everywhere([&] {
    const Arguments flags = {"--horizon", "6", "--total-updates", "1000000", "--num-bits", "12"};
    Child child(flags_of("run", flags), false, place_of(MAMBA_RL));
    child.wait_for_error("update 4");
    child.signal(GetParam());
    const Finished finished = child.finish();
    EXPECT_EQ(finished.code, 130) << finished.err;
    const std::size_t before = lines_of("run/metrics.jsonl");
    Arguments more = flags;
    more.insert(more.end(), {"--resume", "--stop-at", std::to_string(before + 3)});
    EXPECT_EQ(run(flags_of("run", more), place_of(MAMBA_RL)).code, 0);
    EXPECT_EQ(lines_of("run/metrics.jsonl"), before + 3);
  });
}

INSTANTIATE_TEST_SUITE_P(Signals, MambaRlSignals, ::testing::Values(SIGINT, SIGTERM),
                         [](const auto& signal) {
                           return signal.param == SIGINT ? "int" : "term";
                         });

TEST_F(MambaRl, EvaluatesElsewhere) {
  everywhere([&] {
    EXPECT_EQ(agent("run", {"--total-updates", "2"}).code, 0);
    const Finished finished = agent("run", {"--mode", "evaluate", "--horizons", "6", "30"});
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(read_file(file("run/evaluations.jsonl")), HasSubstr("\"evaluated_at\": 30"));
  });
}

// Its checkpoint says how the agent was trained.
TEST_F(MambaRl, EvaluatesWithoutTheFlagsOfTheRun) {
  everywhere([&] {
    for (const Arguments& how :
         {Arguments{},
          {"--controller", "gru", "--chunk-len", "5", "--chunks", "2", "--across-chunks"},
          {"--published-block", "--fixed-horizon", "--rate", "0.0003", "--task", "t-maze"}}) {
      mamba::testing::clear(folder_);
      Arguments more = {"--total-updates", "1"};
      more.insert(more.end(), how.begin(), how.end());
      EXPECT_EQ(agent("run", more).code, 0);
      const auto evaluate = [&](const Arguments& flags) {
        Arguments all = {"--mode", "evaluate",  "--horizons", "12",    "--eval-envs",
                         "32",     "--threads", "1",          "--out", file("run")};
        all.insert(all.end(), on_.begin(), on_.end());
        all.insert(all.end(), flags.begin(), flags.end());
        return run(all, place_of(MAMBA_RL));
      };
      const Finished finished = evaluate({});
      EXPECT_EQ(finished.code, 0) << finished.err;
      EXPECT_THAT(read_file(file("run/evaluations.jsonl")),
                  HasSubstr("\"seed\": 3, \"num_envs\": 8, \"horizon\": 6, \"evaluated_at\": 12"));
      EXPECT_EQ(evaluate({"--num-envs", "8"}).code, 0);
      expect_error(evaluate({"--num-envs", "64"}),
                   "--num-envs: expected 8 as in the run, or none, got 64");
    }
    expect_error(
        run({"--mode", "evaluate", "--horizons", "5", "--out", file("none")}, place_of(MAMBA_RL)),
        file("none") + "/checkpoint");
    EXPECT_FALSE(fs::exists(file("none")));
  });
}

// A kill tears the last line, and leaves lines of updates after the last checkpoint.
TEST_F(MambaRl, MetricsThatAreTornOrComeAgainAreCut) {
  everywhere([&] {
    EXPECT_EQ(agent("run", {"--total-updates", "6", "--stop-at", "2"}).code, 0);
    const std::string metrics = file("run/metrics.jsonl");
    std::string text = read_file(metrics);
    const std::size_t second = text.find('\n') + 1;
    std::string third = text.substr(second);
    third.replace(third.find("\"update\": 2"), 11, "\"update\": 3");
    std::string other = third;  // of another run of a scale
    other.replace(other.find("\"seed\": 3"), 9, "\"seed\": 4");
    std::ofstream(metrics, std::ios::app) << third << other << third.substr(0, 100);
    EXPECT_EQ(agent("run", {"--total-updates", "6", "--stop-at", "4", "--resume"}).code, 0);
    text = read_file(metrics);
    EXPECT_EQ(lines_of("run/metrics.jsonl"), 5u) << text;
    EXPECT_EQ(text.substr(text.find(other), other.size()), other);
    EXPECT_EQ(text.find("\"update\": 3", text.find("\"update\": 3") + 1),
              text.rfind("\"update\": 3"));
  });
}

TEST_F(MambaRl, WhatCannotBeIsNamed) {
  expect_error(agent("run", {"--horizon", "0"}), "--horizon");
  expect_error(agent("run", {"--num-bits", "17"}), "--num-bits");
  expect_error(agent("run", {"--num-envs", "0"}), "--num-envs: expected a number above 0, got 0");
  expect_error(agent("run", {"--controller", "lstm"}), "--controller");
  expect_error(agent("run", {"--entropy", "nan"}), "--entropy: expected a finite number, got nan");
  expect_error(agent("run", {"--memory", "5"}), "memory: expected 10 steps or more");
  expect_error(agent("run", {"--jobs", "2"}), "--jobs");
  expect_error(run({"--out", file("run")}, place_of(MAMBA_RL)), "--horizon");
  expect_error(agents("run", {}), "--horizons");
  expect_error(agents("run", {"--horizons", "3", "3"}), "--horizons");
  expect_error(agent("run", {"--resume"}), "checkpoint");
  for (const Arguments& large : {Arguments{"--chunk-len", "1000000000000"},
                                 {"--chunk-len", "1000000000000", "--num-envs", "64"},
                                 {"--num-envs", "1000000", "--chunk-len", "1000000"},
                                 {"--width", "20000000"},
                                 {"--num-bits", "16", "--chunk-len", "10000000000"}}) {
    expect_error(agent("large", large), "bytes");
  }
  EXPECT_FALSE(fs::exists(file("large/checkpoint")));
  EXPECT_EQ(agent("run", {"--total-updates", "1"}).code, 0);
  expect_error(agent("run", {"--resume", "--num-envs", "9"}), "conv: expected [9, 32, 3]");
  expect_error(agent("run", {"--resume", "--horizon", "7"}), "horizon 7");
  expect_error(agent("run", {"--resume", "--controller", "gru"}), "weight_ih: expected a tensor");
  std::ofstream(file("taken")) << "a file";
  expect_error(agent("taken", {}), "taken");
  fs::create_directory(file("full"));
  std::ofstream(file("full/gru-3-3")) << "a file";
  expect_error(agents("full", {"--horizons", "3"}), "gru-3-3");
  EXPECT_FALSE(fs::exists(file("full/mamba-3-3/checkpoint")));  // said before any training
}

}  // namespace
