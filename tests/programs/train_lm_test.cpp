// train-lm as its user sees it: it learns, stops, goes on, and says what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include <mamba/device.hpp>

#include "child.hpp"
#include "files.hpp"

namespace {

namespace fs = std::filesystem;
using mamba::testing::read_file;
using mamba::testing::write_file;
using ::testing::HasSubstr;
using Arguments = std::vector<std::string>;

class TrainLm : public ProgramTest {
 protected:
  TrainLm() {
    for (int i = 0; i < 200; ++i) text_ += "one two three four five six seven. ";
    write("text", text_);
  }

  std::string file(const std::string& name) const { return folder_.file(name); }
  void write(const std::string& name, const std::string& bytes) { write_file(file(name), bytes); }
  Finished train(const std::string& out, const Arguments& more, const std::string& text = "text") {
    Arguments all = {file(text), "--out",     file(out), "--d-model", "16", "--layers",
                     "2",        "--d-state", "4",       "--batch",   "4",  "--time",
                     "32",       "--warmup",  "5",       "--steps",   "30", "--rate",
                     "0.01",     "--threads", "1"};
    all.insert(all.end(), on_.begin(), on_.end());
    all.insert(all.end(), more.begin(), more.end());
    return run(all, place_of(TRAIN_LM));
  }
  void expect_error(const Finished& finished, const std::string& text) {
    EXPECT_NE(finished.code, 0);
    EXPECT_THAT(finished.err, HasSubstr(text));
  }

  mamba::testing::TemporaryFolder folder_;
  std::string text_;
};

TEST_F(TrainLm, LearnsAndWritesAModelThatMambaLmReads) {
  everywhere([&] {
    fs::remove_all(file("run"));  // metrics are added to a file
    const Finished finished = train("run", {"--valid-every", "10"});
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.err, HasSubstr("step 10: validation"));
    EXPECT_THAT(finished.err, HasSubstr("30/30"));
    const std::string metrics = read_file(file("run/metrics.jsonl"));
    EXPECT_THAT(metrics, HasSubstr("{\"step\": 1, \"loss\": 5.5"));  // log(256) = 5.545
    EXPECT_THAT(metrics, HasSubstr("{\"step\": 30, \"valid_bits_per_byte\": "));
    const std::string last = metrics.substr(metrics.rfind("bits_per_byte\": ") + 16);
    EXPECT_LT(std::stod(last), 4);
    const Finished text = run({"generate", file("run"), "--prompt", "one two", "-n", "9"});
    EXPECT_EQ(text.code, 0) << text.err;
    EXPECT_EQ(text.out.size(), 9u);
  });
}

TEST_F(TrainLm, ResumedIsTheSameToTheByte) {
  everywhere([&] {
    mamba::testing::clear(folder_);
    write("text", text_);
    for (const std::string dtype : {"f32", "bf16", "f16"}) {
      EXPECT_EQ(train("whole" + dtype, {"--dtype", dtype}).code, 0);
      EXPECT_EQ(train("parts" + dtype, {"--dtype", dtype, "--stop-at", "13"}).code, 0);
      EXPECT_NE(read_file(file("parts" + dtype + "/model.safetensors")),
                read_file(file("whole" + dtype + "/model.safetensors")));
      const Finished resumed = train("parts" + dtype, {"--dtype", dtype, "--resume"});
      EXPECT_EQ(resumed.code, 0) << resumed.err;
      for (const char* name : {"/model.safetensors", "/checkpoint", "/config.json"}) {
        EXPECT_EQ(read_file(file("parts" + dtype + name)), read_file(file("whole" + dtype + name)))
            << name;
      }
    }
  });
}

TEST_F(TrainLm, TheArchitectureIsChosen) {
  everywhere([&] {
    mamba::testing::clear(folder_);
    write("text", text_);
    const auto mamba2 = [&](const std::string& out, Arguments more) {
      more.insert(more.end(), {"--architecture", "mamba2", "--head-dim", "8", "--groups", "2"});
      return train(out, more);
    };
    const Finished whole = mamba2("whole", {});
    EXPECT_EQ(whole.code, 0) << whole.err;
    const std::string metrics = read_file(file("whole/metrics.jsonl"));
    EXPECT_LT(std::stod(metrics.substr(metrics.rfind("bits_per_byte\": ") + 16)), 4);
    EXPECT_EQ(mamba2("parts", {"--stop-at", "13"}).code, 0);
    EXPECT_EQ(mamba2("parts", {"--resume"}).code, 0);
    EXPECT_EQ(read_file(file("parts/model.safetensors")),
              read_file(file("whole/model.safetensors")));
    const Finished info = run({"info", file("whole")});
    EXPECT_THAT(info.out, HasSubstr("Mamba2"));
    EXPECT_EQ(run({"generate", file("whole"), "--prompt", "one two", "-n", "9"}).out.size(), 9u);
  });
  expect_error(train("other", {"--architecture", "lstm"}), "--architecture");
  expect_error(train("other", {"--architecture", "mamba2", "--head-dim", "5"}),
               "head_dim: expected a divisor of d_inner, 32, got 5");
}

TEST_F(TrainLm, AFolderIsItsFilesAndASeparatorCutsThem) {
  fs::create_directories(folder_.path() / "texts");
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
  expect_error(train("run", {}, "/proc/self/mem"),
               "/proc/self/mem: expected a file that can be read, got Input/output error");
  expect_error(train("run", {"--resume"}), "checkpoint");
  EXPECT_EQ(train("run", {"--steps", "2"}).code, 0);
  expect_error(train("run", {"--resume", "--batch", "5"}), "checkpoint");
  write("other", read_file(file("text")) + "more");
  expect_error(train("run", {"--resume"}, "other"), "expected text");
  std::string bytes = read_file(file("run/checkpoint"));
  write("run/checkpoint", bytes.substr(0, bytes.size() - 5));
  expect_error(train("run", {"--resume"}), "run/checkpoint: ");
}

// A rate that no training survives: the run stops, names the step, and the checkpoint stays.
TEST_F(TrainLm, ALossThatIsNotFiniteStopsTheRunAndKeepsTheCheckpoint) {
  everywhere([&] {
    EXPECT_EQ(train("run", {"--stop-at", "5", "--overwrite"}).code, 0);
    const std::string before = read_file(file("run/checkpoint"));
    const Finished broken = train("run", {"--resume", "--rate", "1e30", "--clip", "0"});
    expect_error(broken, "expected a finite loss and gradient, got a loss of ");
    EXPECT_THAT(broken.err, HasSubstr("train-lm: step "));
    EXPECT_THAT(broken.err, HasSubstr(", first in the gradient of backbone."));
    EXPECT_EQ(read_file(file("run/checkpoint")), before);
  });
}

// As the last test, where what is not finite might also be a loss scale that is too large.
TEST_F(TrainLm, InF16ALossThatIsNotFiniteStopsTheRunToo) {
  everywhere([&] {
    const Finished broken =
        train("run", {"--dtype", "f16", "--rate", "1e30", "--clip", "0", "--overwrite"});
    expect_error(broken, "expected a finite loss and gradient, got a loss of ");
  });
}

TEST_F(TrainLm, DevicesThatCannotShareABatchAreNamed) {
  expect_error(train("run", {"--device", "cpu,cpu"}),
               HAS_NCCL ? "expected CUDA devices, got cpu" : "this build has no NCCL");
  expect_error(train("run", {"--device", "cpu,cuda:x"}), "expected cpu, cuda or cuda:N");
  expect_error(train("run", {"--device", ""}), "--device: expected a value, got an empty one");
  expect_error(train("run", {"--device", "cuda:0,cuda:1", "--batch", "1"}),
               "--batch: expected a row for each of 2 devices, got 1");
}

// ---- what a run has left ------------------------------------------------------------------------

TEST_F(TrainLm, ARunIsNeverOverwrittenUnlessTold) {
  EXPECT_EQ(train("run", {"--steps", "2"}).code, 0);
  const auto whole = [&] {
    return read_file(file("run/model.safetensors")) + read_file(file("run/checkpoint")) +
           read_file(file("run/metrics.jsonl"));
  };
  const std::string before = whole();
  expect_error(train("run", {"--steps", "2", "--seed", "7"}),
               "--out: expected a folder without a run in it, --resume or --overwrite, got " +
                   file("run/checkpoint"));
  expect_error(train("run", {"--resume", "--overwrite"}), "--overwrite");
  EXPECT_EQ(whole(), before);
  fs::remove(file("run/checkpoint"));  // each of its files is enough
  fs::remove(file("run/metrics.jsonl"));
  expect_error(train("run", {}), file("run/model.safetensors"));
  EXPECT_EQ(train("run", {"--steps", "2", "--seed", "7", "--overwrite"}).code, 0);
  EXPECT_NE(whole(), before);
  const std::string metrics = read_file(file("run/metrics.jsonl"));
  EXPECT_EQ(metrics.find("{\"step\": 1,"), metrics.rfind("{\"step\": 1,")) << "of one run";
}

TEST_F(TrainLm, WhatItWritesIsNoText) {
  fs::create_directories(file("texts/sub"));
  write("texts/a", text_);
  write("texts/sub/b", text_);
  const Finished first = train("texts/run", {"--steps", "3", "--stop-at", "2"}, "texts");
  EXPECT_THAT(first.err, HasSubstr("in 2 documents"));
  const Finished resumed = train("texts/run", {"--steps", "3", "--resume"}, "texts");
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  const Finished second = train("texts/sub/other", {"--steps", "1"}, "texts");
  EXPECT_THAT(second.err, HasSubstr("in 2 documents"));
  EXPECT_THAT(second.err, HasSubstr(file("texts/run") + " is left out: a run, and no text"));
  expect_error(train("texts", {}, "texts"), "expected a folder of text");
  expect_error(train("new", {}, "texts/run"), "expected a folder of text");
}

TEST_F(TrainLm, AResumeKnowsItsTextByContent) {
  EXPECT_EQ(train("run", {"--stop-at", "2"}).code, 0);
  std::string other = text_;
  std::swap(other[10], other[12]);
  write("other", other);
  expect_error(train("run", {"--resume"}, "other"), "checkpoint: expected text ");
  write("cut", text_);
  expect_error(train("run", {"--resume", "--separator", "seven"}, "cut"), "expected text ");
  write("moved", text_);  // the name of the file is no matter
  EXPECT_EQ(train("run", {"--resume", "--stop-at", "3"}, "moved").code, 0);
}

// One of before that says of its text how long it is.
TEST_F(TrainLm, AnOlderCheckpointIsGoneOnWith) {
  EXPECT_EQ(train("run", {"--stop-at", "2"}).code, 0);
  std::string bytes = read_file(file("run/checkpoint"));
  const std::size_t at = bytes.find(", hash ", bytes.find("\"note.text\""));
  ASSERT_NE(at, std::string::npos);
  const std::size_t length = 7 + 16;
  bytes.erase(at, length);
  const std::size_t end = bytes.find("}}");  // the header keeps its length
  bytes.insert(end + 2, length, ' ');
  write("run/checkpoint", bytes);
  const Finished resumed = train("run", {"--resume", "--stop-at", "3"});
  EXPECT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_THAT(read_file(file("run/checkpoint")), HasSubstr(", hash "));
}

TEST_F(TrainLm, MetricsThatAreTornOrComeAgainAreCut) {
  EXPECT_EQ(train("whole", {"--steps", "9", "--valid-every", "3"}).code, 0);
  EXPECT_EQ(train("run", {"--steps", "9", "--valid-every", "3", "--stop-at", "4"}).code, 0);
  const std::string metrics = file("run/metrics.jsonl");
  // As if it had gone on after its checkpoint and been killed.
  std::ofstream(metrics, std::ios::app)
      << "{\"step\": 5, \"loss\": 1.0, \"bits_per_byte\": 1.0}\n"
      << "{\"step\": 6, \"valid_bits_per_byte\": 1.0}\n{\"step\": 7, \"lo";
  EXPECT_EQ(train("run", {"--steps", "9", "--valid-every", "3", "--resume"}).code, 0);
  EXPECT_EQ(train("run", {"--steps", "9", "--valid-every", "3", "--resume"}).code, 0);  // done
  std::map<std::string, int> lines;
  std::istringstream text(read_file(metrics));
  for (std::string line; std::getline(text, line);) {
    EXPECT_EQ(line.back(), '}') << line;
    ++lines[line.substr(0, line.find(',') + 8)];  // the step and the kind
  }
  EXPECT_EQ(lines.size(), 9u + 4u) << "and validations at 3, 4, 6 and 9";
  for (const auto& [line, count] : lines) EXPECT_EQ(count, 1) << line;
  EXPECT_EQ(read_file(metrics).find("\"loss\": 1.0,"), std::string::npos);
}

// Killed anywhere, it leaves no more than the next run clears away.
TEST_F(TrainLm, WhatAKilledRunLeftIsRemovedByTheNext) {
  const auto temporaries = [&] {
    std::size_t count = 0;
    for (const auto& entry : fs::directory_iterator(file("run"))) {
      count += entry.path().extension() == ".tmp" ? 1 : 0;
    }
    return count;
  };
  const Arguments arguments = {file("text"), "--out",         file("run"), "--d-model",
                               "64",         "--layers",      "2",         "--batch",
                               "2",          "--time",        "8",         "--threads",
                               "1",          "--steps",       "100000",    "--save-every",
                               "1",          "--valid-every", "100000"};
  std::size_t left = 0;
  for (int i = 0; i < 30; ++i) {
    Arguments all = arguments;
    if (fs::exists(file("run/checkpoint")))
      all.push_back("--resume");
    else
      all.push_back("--overwrite");
    Child child(all, false, place_of(TRAIN_LM));
    std::this_thread::sleep_for(std::chrono::milliseconds(40 + 7 * i % 50));
    child.signal(SIGKILL);
    child.finish();
    if (fs::exists(file("run"))) {
      left += temporaries();
      EXPECT_LE(temporaries(), 1u);
    }
  }
  EXPECT_GT(left, 0u) << "no kill came while it wrote";
  Arguments last = arguments;
  last.insert(last.end(), {"--resume", "--stop-at", "1"});
  EXPECT_EQ(run(last, place_of(TRAIN_LM)).code, 0);
  EXPECT_EQ(temporaries(), 0u);
}

TEST_F(TrainLm, NumbersOutOfRangeArePrintedAsNumbers) {
  for (const char* flag : {"--steps", "--batch", "--time", "--d-model", "--save-every"}) {
    for (const char* number : {"0", "-1", "1e30", "99999999999999999999"}) {
      const Finished finished = train("run", {flag, number});
      expect_error(finished, std::string(flag) + ": expected a whole number from 1 to ");
      EXPECT_THAT(finished.err, HasSubstr(std::string(", got ") + number));
      EXPECT_LT(finished.err.size(), 200u);
    }
  }
  expect_error(train("run", {"--rate", "1e999"}), "--rate: expected a number of at least 0, got");
  expect_error(train("run", {"--valid-share", "0.7"}),
               "--valid-share: expected a number from 0.0001 to 0.5, got 0.7");
}

// ---- plots --------------------------------------------------------------------------------------

class Scripts : public TrainLm {
 protected:
  void SetUp() override {
    const bool python = std::system("python3 -c '' > /dev/null 2>&1") == 0;
    if (!python || !fs::exists(path("plot_metrics.py")))
      GTEST_SKIP() << "needs Python, and scripts/";
  }
  static std::string path(const std::string& name) {
    return mamba::testing::golden_folder("../../scripts/" + name);
  }
  Finished script(const std::string& name, const Arguments& arguments) const {
    Arguments all = {"python3", path(name)};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run(all, "/usr/bin/env");
  }
};

TEST_F(Scripts, PlotsSkipWhatTheyCannotReadAndSaySo) {
  write("metrics.jsonl",
        "{\"step\": 1, \"bits_per_byte\": 4.5}\n{\"step\": 2, \"bits_per{\"step\": 2}\n[7]\n"
        "{\"step\": \"three\", \"bits_per_byte\": 4}\n{\"step\": 4, \"bits_per_byte\": NaN}\n"
        "{\"step\": 5, \"bits_per_byte\": 4.25}\n{\"step\": 6, \"valid_bits");
  const Finished plot = script("plot_metrics.py", {file("metrics.jsonl")});
  EXPECT_EQ(plot.code, 0) << plot.err;
  EXPECT_THAT(plot.out, HasSubstr("</svg>"));
  EXPECT_THAT(plot.err, HasSubstr("5 lines that cannot be read are left out: 2, 3, 4, 5, 7"));
  write("none.jsonl", "{\"step\"");
  const Finished none = script("plot_metrics.py", {file("none.jsonl")});
  EXPECT_EQ(none.code, 1);
  EXPECT_THAT(none.err, HasSubstr("no steps in it"));
  EXPECT_EQ(none.err.find("Traceback"), std::string::npos);
  EXPECT_EQ(script("plot_metrics.py", {file("nowhere")}).err.find("Traceback"), std::string::npos);
}

class TrainLmOnTwo : public TrainLm {
 protected:
  void SetUp() override {
    if (!HAS_NCCL || mamba::cuda_device_count() < 2) GTEST_SKIP() << "needs two CUDA devices";
  }
  Finished two(const std::string& out, Arguments more) {
    more.insert(more.end(), {"--device", "cuda:0,cuda:1"});
    return train(out, more);
  }
};

TEST_F(TrainLmOnTwo, TheSameBytesEveryTimeResumedOrNot) {
  for (const std::string dtype : {"f32", "bf16", "f16"}) {
    EXPECT_EQ(two("whole" + dtype, {"--dtype", dtype}).code, 0);
    EXPECT_EQ(two("parts" + dtype, {"--dtype", dtype, "--stop-at", "13"}).code, 0);
    const Finished resumed = two("parts" + dtype, {"--dtype", dtype, "--resume"});
    EXPECT_EQ(resumed.code, 0) << resumed.err;
    for (const char* name : {"/model.safetensors", "/checkpoint"}) {
      EXPECT_EQ(read_file(file("parts" + dtype + name)), read_file(file("whole" + dtype + name)))
          << name;
    }
  }
}

// One device reads what two have written and the other way round: the same data, in f32 the same
// losses but for rounding.
TEST_F(TrainLmOnTwo, LearnsWhatOneDeviceLearns) {
  EXPECT_EQ(train("one", {"--device", "cuda:0"}).code, 0);
  EXPECT_EQ(two("two", {"--stop-at", "10"}).code, 0);
  EXPECT_EQ(train("two", {"--device", "cuda:0", "--resume", "--stop-at", "20"}).code, 0);
  EXPECT_EQ(two("two", {"--resume"}).code, 0);
  const auto last = [&](const std::string& out) {
    const std::string metrics = read_file(file(out + "/metrics.jsonl"));
    return std::stod(metrics.substr(metrics.rfind("bits_per_byte\": ") + 16));
  };
  EXPECT_NEAR(last("two"), last("one"), 0.01);
}

TEST_F(TrainLmOnTwo, ALossThatIsNotFiniteStopsBoth) {
  EXPECT_EQ(two("run", {"--stop-at", "5"}).code, 0);
  const std::string before = read_file(file("run/checkpoint"));
  const Finished broken = two("run", {"--resume", "--rate", "1e30", "--clip", "0"});
  expect_error(broken, "expected a finite loss and gradient, got a loss of ");
  EXPECT_EQ(read_file(file("run/checkpoint")), before);
}

}  // namespace
