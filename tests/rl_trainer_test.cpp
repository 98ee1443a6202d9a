// The trainer of the example library mamba_rl: that it trains on what was lived through.
#include "rl/trainer.hpp"

#include <cmath>

#include "testing.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::testing::devices;
using mamba::testing::f32_roundoff;

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
TEST(RlTrainer, TrainsThePolicyThatActed) {
  // A term is (ratio - 1) - log(ratio) in f32: the ratio, near 1, is rounded by its exponential to
  // two units (CUDA's), each twice the roundoff, and what is left is half the square of log(ratio).
  // That is the difference between logits of about 1 that were rounded some hundred times, as in
  // RlCollect.StepsAreTheSequence.
  constexpr double change = 200 * f32_roundoff;
  constexpr double bound = 4 * f32_roundoff + change * change / 2;
  for (const Device device : devices()) {
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
}

}  // namespace
// Episodes of five steps in chunks of two: what happened in an update without a query is unknown.
TEST(RlTrainer, TheCurriculumJudgesByUpdatesWithQueries) {
  for (const Device device : devices()) {
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
}

}  // namespace mamba_rl
