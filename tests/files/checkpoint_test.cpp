// A training run that stops and goes on is the run that never stopped; a file that lies is refused.
#include <mamba/checkpoint.hpp>

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "files.hpp"
#include "model/training_run.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::TemporaryFolder;
using testing::TrainingRun;

std::vector<std::vector<unsigned char>> everything(const TrainingRun& training) {
  std::vector<std::vector<unsigned char>> all;
  training.optimizer.each_tensor(
      [&](const std::string&, ConstTensorView tensor) { all.push_back(bits(tensor)); });
  for (const MambaState& layer : training.state.layers) {
    all.push_back(bits(layer.conv));
    all.push_back(bits(layer.ssm));
  }
  return all;
}

TEST_EACH(Checkpoint, AResumedRunIsBitIdenticalToOneThatNeverStopped, MixerKind mixer,
          Device device, testing::OneOf<DType::f32, DType::bf16> dtype) {
  const TemporaryFolder folder;
  TrainingRun whole(dtype, device, mixer);
  for (int i = 0; i < 5; ++i) whole.step();
  whole.progress.notes["text"] = "book.txt";
  whole.progress.loss_scale.value = 1024;
  whole.progress.loss_scale.good_steps = 17;
  whole.save(folder.file("run"));
  std::vector<float> losses;
  for (int i = 0; i < 5; ++i) losses.push_back(whole.step());

  TrainingRun resumed(dtype, device, mixer);
  resumed.step();  // whatever it did before
  resumed.load(folder.file("run"));
  EXPECT_EQ(resumed.optimizer.steps(), 5);
  EXPECT_EQ(resumed.progress.seed, 7u);
  EXPECT_EQ(resumed.progress.draws, 5u);
  EXPECT_EQ(resumed.progress.loss_scale.value, 1024);
  EXPECT_EQ(resumed.progress.loss_scale.good_steps, 17);
  EXPECT_EQ(resumed.progress.positions, (std::vector<std::int64_t>{80, 80, 80, 80}));
  EXPECT_EQ(resumed.progress.notes.at("text"), "book.txt");
  for (float loss : losses) EXPECT_EQ(resumed.step(), loss);
  EXPECT_EQ(everything(resumed), everything(whole));
}

TEST(Checkpoint, TheSameRunGivesTheSameBytes) {
  const TemporaryFolder folder;
  for (const char* name : {"a", "b"}) {
    TrainingRun training(DType::bf16, Device::cpu());
    training.step();
    training.save(folder.file(name));
  }
  const auto read = [&](const char* name) {
    std::ifstream file(folder.file(name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  EXPECT_EQ(read("a"), read("b"));
}

class BadCheckpoint : public ::testing::Test {
 protected:
  BadCheckpoint() : training_(DType::f32, Device::cpu()) {
    training_.step();
    path_ = folder_.file("run");
    training_.save(path_);
    std::ifstream file(path_, std::ios::binary);
    good_.assign(std::istreambuf_iterator<char>(file), {});
  }
  void write(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
  }
  // Refused as a FormatError that names the file, and nothing touched.
  void expect_refused(const std::string& what) {
    TrainingRun fresh(DType::f32, Device::cpu());
    const auto before = everything(fresh);
    try {
      fresh.load(path_);
      ADD_FAILURE() << what << " was taken";
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(path_), std::string::npos) << error.what();
    }
    EXPECT_EQ(everything(fresh), before) << what;
    EXPECT_EQ(fresh.optimizer.steps(), 0);
  }

  TemporaryFolder folder_;
  TrainingRun training_;
  std::string path_, good_;
};

TEST_F(BadCheckpoint, CutShort) {
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{7}, std::size_t{100}, good_.size() / 2, good_.size() - 1}) {
    write(good_.substr(0, size));
    expect_refused(std::to_string(size) + " bytes");
  }
}

TEST_F(BadCheckpoint, OneBitFlipped) {
  for (const std::size_t at : {good_.size() - 1, good_.size() / 2, good_.size() * 3 / 4}) {
    std::string bytes = good_;
    bytes[at] = static_cast<char>(bytes[at] ^ 4);
    write(bytes);
    expect_refused("byte " + std::to_string(at));
  }
}

TEST_F(BadCheckpoint, OfAnotherKindVersionOrModel) {
  const auto replace = [&](const std::string& from, const std::string& to) {
    std::string bytes = good_;
    const std::size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    bytes.replace(at, from.size(), to);
    write(bytes);
    expect_refused(from);
  };
  replace("mamba.cpp training", "mamba.cpp draining");
  replace("\"version\":\"1\"", "\"version\":\"2\"");
  replace("\\\"loss_scale\\\":65536.0", "\\\"loss_scale\\\":0.50000");
  replace("\\\"good_steps\\\":0", "\\\"good_steps\\\":x");
  replace("weight.backbone.norm_f.weight", "weight.backbone.norm_g.weight");
  save_training(path_, training_.optimizer, nullptr, {});
  expect_refused("a file without the carried state");
  training_.save(path_);
  TrainingRun other(DType::bf16, Device::cpu());
  EXPECT_THROW(other.load(path_), FormatError);
  EXPECT_THROW(load_training(path_, other.optimizer, nullptr), FormatError);
  EXPECT_THROW(load_training(path_, training_.optimizer, nullptr), FormatError);
}

TEST(Checkpoint, MissingFileIsAnError) {
  TrainingRun training(DType::f32, Device::cpu());
  EXPECT_THROW(training.load("/nowhere/run"), Error);
}

}  // namespace
}  // namespace mamba
