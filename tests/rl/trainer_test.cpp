// The trainer of the example library mamba_rl: that it trains on what was lived through, goes on to
// the bit, and learns.
#include <cmath>
#include <fstream>
#include <iterator>

#include <mamba/safetensors.hpp>

#include "each.hpp"
#include "rl/options.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::testing::devices;
using mamba::testing::f32_roundoff;
using mamba::testing::relative_error;
using mamba::testing::values;

// Chunks that end within episodes of ten or eleven steps, and a single step of the optimiser.
TrainerOptions one_step(const std::string& controller, Task task, Device device) {
  TrainerOptions options;
  options.environment.task = task;
  options.environment.delay = 9;
  options.environment.seed = options.controller.seed = 2;
  options.controller.kind = controller;
  options.controller.width = 16;
  options.num_envs = 8;
  options.chunk_len = 7;
  options.chunks = 3;
  options.ppo.epochs = options.ppo.minibatches = 1;
  options.ppo.rate = 5e-2f;  // soon far from a fresh policy, which hardly depends on the memory
  options.curriculum = false;
  options.device = device;
  options.threads = 1;
  return options;
}

// Before its only step the policy is the one that acted. Where a reset is lost on the way to
// training, the answers after it are another policy's. In repeat_last these are in the reset's own
// chunk; in delayed_cue, whose answers are longer after it than a chunk, they are in a later one,
// to which the state goes on where gradients go through all chunks.
TEST_EACH(RlTrainer, TrainsThePolicyThatActed, Device device) {
  // A term is (ratio - 1) - log(ratio) in f32: the ratio, near 1, is rounded by its exponential to
  // two units (CUDA's), each twice the roundoff, and what is left is half the square of log(ratio).
  // That is the difference between logits of about 1 that were rounded some hundred times, as in
  // RlCollect.StepsAreTheSequence.
  constexpr double change = 200 * f32_roundoff;
  constexpr double bound = 4 * f32_roundoff + change * change / 2;
  for (const std::string controller : {"mamba", "gru"}) {
    for (const Task task : {Task::delayed_cue, Task::repeat_last}) {
      for (const bool across : {false, true}) {
        SCOPED_TRACE(device.name() + " " + controller + " " +
                     std::to_string(static_cast<int>(task)) + (across ? " across" : ""));
        TrainerOptions options = one_step(controller, task, device);
        options.across_chunks = across;
        Trainer trainer(options);
        for (int update = 0; update < 6; ++update) {
          const UpdateResult result = trainer.update();
          EXPECT_GT(result.score.queries, 0);
          EXPECT_LE(std::abs(result.divergence), bound);
          EXPECT_EQ(result.clipped, 0);
        }
      }
    }
  }
}

// Episodes of five steps in chunks of two: what happened in an update without a query is unknown.
TEST_EACH(RlTrainer, TheCurriculumJudgesByUpdatesWithQueries, Device device) {
  TrainerOptions options = one_step("gru", Task::delayed_cue, device);
  options.chunk_len = 2;
  options.chunks = 1;
  options.curriculum = true;
  options.first_delay = 3;
  options.window = 1;
  options.good = -1;  // whatever the agent answers
  Trainer trainer(options);
  for (const std::int32_t delay : {3, 3, 6}) {
    const UpdateResult result = trainer.update();
    EXPECT_EQ(result.score.queries > 0, delay == 6) << device.name();
    EXPECT_EQ(trainer.delay(), delay) << device.name();
  }
}

// What is saved under names that begin so, all in a row.
std::vector<double> saved(const std::string& checkpoint, const std::string& prefix) {
  const mamba::SafetensorsFile file(checkpoint);
  std::vector<double> all;
  for (const mamba::SafetensorsEntry& entry : file.entries()) {
    if (entry.name.rfind(prefix, 0) != 0) continue;
    const std::vector<double> one = values(file.read(entry));
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

// Two chunks with gradients across them are one chunk of twice the length; without, they are not.
TEST_EACH(RlTrainer, GradientsAcrossChunksAreThoseOfTheWhole, Device device) {
  for (const std::string controller : controllers) {
    const mamba::testing::TemporaryFolder folder;
    const auto gradients = [&](std::int64_t chunks, bool across) {
      TrainerOptions options = small(controller, 10);
      options.device = device;
      options.curriculum = false;
      options.controller.memory = 20;  // so that much is remembered from chunk to chunk
      options.chunks = chunks;
      options.chunk_len = 24 / chunks;
      options.across_chunks = across;
      options.ppo.epochs = options.ppo.minibatches = 1;
      options.ppo.max_norm = 0;
      Trainer trainer(options);
      trainer.update();
      trainer.save(folder.file("checkpoint"));
      // After one step the first moment is a tenth of the gradient.
      return saved(folder.file("checkpoint"), "m.encoder");
    };
    const std::vector<double> whole = gradients(1, false);
    EXPECT_LE(relative_error(gradients(3, true), whole), 1e-5);
    EXPECT_GE(relative_error(gradients(3, false), whole), 1e-3);
  }
}

TEST_EACH(RlTrainer, GoesOnToTheBit, Device device) {
  for (const std::string controller : controllers) {
    const mamba::testing::TemporaryFolder folder;
    TrainerOptions options = small(controller, 9);
    options.device = device;
    options.chunk_len = 7;  // chunks end within episodes
    options.first_delay = 3;
    options.good = 0.01;  // the delay grows on the way
    Trainer whole(options), first(options), second(options);
    for (int i = 0; i < 14; ++i) whole.update();
    for (int i = 0; i < 6; ++i) first.update();
    first.save(folder.file("middle"), {{"mine", "kept"}});
    EXPECT_EQ(second.load(folder.file("middle")).at("mine"), "kept");
    for (int i = 0; i < 8; ++i) second.update();
    EXPECT_EQ(second.delay(), whole.delay());
    EXPECT_GT(whole.delay(), 3);
    whole.save(folder.file("whole"));
    second.save(folder.file("second"));
    const auto bytes = [&](const char* name) {
      std::ifstream file(folder.file(name), std::ios::binary);
      return std::string(std::istreambuf_iterator<char>(file), {});
    };
    EXPECT_EQ(bytes("whole"), bytes("second")) << controller;
  }
}

TEST(RlTrainer, TheRateFallsOnceTheHorizonIsMastered) {
  const mamba::testing::TemporaryFolder folder;
  TrainerOptions options = small("gru", 4);
  options.first_delay = 4;
  options.good = 0.001;  // mastered as soon as there is a window of updates
  options.ppo.cooling = 2;
  Trainer trainer(options), later(options);
  for (int update = 1; update <= 6; ++update) {
    EXPECT_EQ(trainer.rate(), options.ppo.rate * 2.0f / (2.0f + std::max(0, update - 4)));
    trainer.update();
  }
  trainer.save(folder.file("checkpoint"));
  later.load(folder.file("checkpoint"));
  EXPECT_EQ(later.rate(), trainer.rate());
  EXPECT_LT(later.rate(), options.ppo.rate / 2);

  options.ppo.cooling = 0;
  Trainer constant(options);
  for (int update = 1; update <= 6; ++update) constant.update();
  EXPECT_EQ(constant.rate(), options.ppo.rate);
}

TEST(RlTrainer, AnEvaluationLeavesTheTrainingAlone) {
  const mamba::testing::TemporaryFolder folder;
  Trainer plain(small("mamba", 6)), evaluated(small("mamba", 6));
  for (int i = 0; i < 3; ++i) {
    plain.update();
    evaluated.update();
    const Score score = evaluated.evaluate(9, i % 2 == 0, 40);
    EXPECT_EQ(score.queries, 40);
  }
  plain.save(folder.file("plain"));
  evaluated.save(folder.file("evaluated"));
  EXPECT_EQ(saved(folder.file("plain"), ""), saved(folder.file("evaluated"), ""));
}

// Updates until the agent is right in at least this share of a thousand episodes.
double learned(Trainer& trainer, double enough, int most) {
  double success = 0;
  for (int update = 1; update <= most && success < enough; ++update) {
    trainer.update();
    if (update % 10 == 0) {
      success = trainer.evaluate(trainer.options().environment.delay, true).success();
    }
  }
  return success;
}

TEST_EACH(RlTrainer, LearnsToRememberForTwentySteps, Device device) {
  for (const std::string controller : controllers) {
    TrainerOptions options = options_of(controller, 20);
    options.device = device;
    Trainer trainer(options);
    EXPECT_GE(learned(trainer, 0.9, 200), 0.9) << device.name() << " " << controller;
  }
}

TEST(RlTrainer, LearnsTheSmallTasks) {
  for (const Task task : {Task::bandit, Task::repeat_last, Task::t_maze}) {
    TrainerOptions options = options_of("mamba", 6);
    options.environment.task = task;
    options.environment.num_bits = 2;
    options.chunk_len = 24;
    options.controller.width = 32;
    options.curriculum = task == Task::t_maze;
    Trainer trainer(options);
    EXPECT_GE(learned(trainer, 0.9, 150), 0.9) << static_cast<int>(task);
  }
}

TEST(RlTrainer, WhatCannotBeIsNamed) {
  using mamba::testing::expect_error;
  expect_error<mamba::ArgumentError>("Controller: kind: expected mamba, mamba2 or gru, got lstm",
                                     [] { Trainer trainer(small("lstm", 3)); });
  expect_error<mamba::ArgumentError>("mamba-rl: horizon: expected 1 to 268435456, got 0",
                                     [] { Trainer trainer(small("gru", 0)); });
  TrainerOptions large = small("gru", 3);
  large.chunk_len = 200000000;
  EXPECT_THROW(Trainer trainer(large), mamba::Error);
}

}  // namespace
}  // namespace mamba_rl
