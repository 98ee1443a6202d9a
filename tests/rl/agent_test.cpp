// Agents of the example library mamba_rl: what resets do, and that pieces are the whole.
#include <algorithm>
#include <cmath>

#include "each.hpp"
#include "model/layer_reference.hpp"
#include "rl/agent/mamba_controller.hpp"
#include "rl/options.hpp"
#include "rl/rollout/rollout.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Shape;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::bits;
using mamba::testing::devices;
using mamba::testing::relative_error;
using mamba::testing::values;

// What an agent says at the query, for every cue of two bits, with the same noise; the state is
// forgotten before the steps that `reset` names.
std::vector<std::vector<double>> answers(const std::string& controller, Device device,
                                         const std::vector<std::int32_t>& reset) {
  AgentConfig config;
  config.controller.kind = controller;
  config.controller.width = 16;
  config.observation = 5;
  config.actions = 4;
  const Agent agent(config, device);
  Stream stream(device);
  const auto time = static_cast<std::int64_t>(reset.size());
  std::vector<std::vector<double>> all;
  for (int cue = 0; cue < 4; ++cue) {
    std::vector<float> seen(static_cast<std::size_t>(time) * 5, 0.0f);
    for (std::size_t t = 0; t < static_cast<std::size_t>(time); ++t) {
      seen[5 * t + 4] = 0.1f * static_cast<float>(t % 3);
    }
    seen[0] = (cue & 1) != 0 ? 1.0f : -1.0f;
    seen[1] = (cue & 2) != 0 ? 1.0f : -1.0f;
    seen[2] = 1;
    seen[seen.size() - 2] = 1;
    const Tensor observations = Tensor::from(seen, {1, time, 5}).to(device);
    const Tensor begins = Tensor::from(reset, {1, time}).to(device);
    mamba::StackState state = agent.make_state(1);
    Tensor hidden({1, time, 16}, DType::f32, device), out({time, 5}, DType::f32, device);
    agent.remember(observations, state, begins, hidden, nullptr, stream);
    agent.decide(hidden.view().reshape({time, 16}), out, stream);
    stream.synchronize();
    all.push_back(values(out.view().rows(time - 1, 1)));
  }
  return all;
}

// Steps after which a fresh controller's units have forgotten all but 1/e, without anything seen.
std::vector<double> memories(const std::string& kind, float memory) {
  ControllerConfig config;
  config.kind = kind;
  config.memory = memory;
  const auto controller = Controller::make(config, Device::cpu());
  std::vector<double> steps;
  for (const mamba::Parameter& parameter : controller->parameters()) {
    const std::vector<double> weight = values(parameter.weight);
    if (parameter.name == "bias_hh") {
      for (std::size_t i = 64; i < 128; ++i) steps.push_back(1 + std::exp(weight[i]));
    } else if (parameter.name == "layers.0.dt_proj.bias") {  // its slowest state has A = -1
      for (const double bias : weight) steps.push_back(1 / std::log1p(std::exp(bias)));
    }
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

TEST(RlController, FreshMemoriesAreSpreadUpToTheLongest) {
  for (const std::string kind : {"mamba", "gru"}) {
    for (const float memory : {1000.0f, 200000.0f}) {
      const std::vector<double> steps = memories(kind, memory);
      ASSERT_GE(steps.size(), 64U) << kind;
      const double shortest = kind == "mamba" ? 10 : 1.5;  // dt_max of the published recipe: 0.1
      EXPECT_GE(steps.front(), 0.99 * shortest) << kind;
      EXPECT_LE(steps.back(), 1.01 * memory) << kind;
      EXPECT_GE(steps.back(), memory / 4) << kind;
      // Evenly in the logarithm: half of them below the middle, within four deviations of it.
      const double middle = std::sqrt(shortest * memory);
      const auto below = std::lower_bound(steps.begin(), steps.end(), middle) - steps.begin();
      const double count = static_cast<double>(steps.size());
      EXPECT_NEAR(static_cast<double>(below), count / 2, 2 * std::sqrt(count)) << kind;
    }
  }
}

// Layers of a controller are controllers of one layer, of consecutive seeds.
TEST_EACH(RlController, LayersFollowEachOther, Device device) {
  const Shape shape{2, 7, 16};
  std::vector<float> numbers;
  for (std::int64_t i = 0; i < shape.count(); ++i) {
    numbers.push_back(static_cast<float>(std::sin(0.7 * static_cast<double>(i))));
  }
  Stream stream(device);
  ControllerConfig config;
  config.width = 16;
  const auto first = Controller::make(config, device);
  config.seed = 1;
  const auto second = Controller::make(config, device);
  config.seed = 0;
  config.layers = 2;
  const auto both = Controller::make(config, device);
  const Tensor x = Tensor::from(numbers, shape).to(device);
  // y, then dx for dy = x.
  const auto run = [&](const std::vector<Controller*>& chain) {
    Tensor y = x.clone();
    std::vector<std::unique_ptr<ControllerTape>> tapes;
    for (Controller* controller : chain) {
      mamba::StackState state = controller->make_state(2);
      tapes.push_back(controller->make_tape());
      Tensor next(shape, DType::f32, device);
      controller->forward(y, state, {}, next, tapes.back().get(), stream);
      stream.synchronize();
      y = std::move(next);
    }
    Tensor dy = x.clone();
    for (std::size_t i = chain.size(); i-- > 0;) {
      Tensor dx(shape, DType::f32, device);
      chain[i]->backward(*tapes[i], dy, nullptr, dx, stream);
      stream.synchronize();
      dy = std::move(dx);
    }
    return std::make_pair(bits(y), bits(dy));
  };
  const auto [y, dx] = run({both.get()});
  const auto [expected_y, expected_dx] = run({first.get(), second.get()});
  EXPECT_EQ(y, expected_y) << device.name();
  EXPECT_EQ(dx, expected_dx) << device.name();
}

// Each layer's y added to its x: one rounding, so to the bit.
TEST_EACH(RlController, AddsWhatEachLayerSaysToWhatItReads, Device device) {
  const Shape shape{2, 7, 16};
  mamba::testing::Random random(8);
  const std::vector<std::int32_t> resets = {0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
  for (const std::int64_t layers : {1, 2, 3}) {
    Stream stream(device);
    ControllerConfig config;
    config.width = 16;
    config.layers = layers;
    const MambaController controller(config, device);
    const Tensor reset = Tensor::from(resets, {2, 7}).to(device);
    const Tensor x = random.normal_tensor(shape).to(device);
    mamba::StackState state = controller.make_state(2), expected_state = controller.make_state(2);
    Tensor y(shape, DType::f32, device);
    controller.forward(x, state, reset, y, nullptr, stream);
    stream.synchronize();
    Tensor expected = x.to(Device::cpu());
    for (std::size_t i = 0; i < controller.layers().size(); ++i) {
      const Tensor read = expected.to(device);
      Tensor branch(shape, DType::f32, device);
      mamba::LayerOptions options;
      options.reset = reset;
      controller.layers()[i].forward(read, expected_state.layers[i], branch, stream, options);
      stream.synchronize();
      const Tensor said = branch.to(Device::cpu());
      for (std::int64_t k = 0; k < shape.count(); ++k) {
        expected.data<float>()[k] += said.data<float>()[k];
      }
      EXPECT_EQ(bits(state.layers[i].conv), bits(expected_state.layers[i].conv));
      EXPECT_EQ(bits(state.layers[i].ssm), bits(expected_state.layers[i].ssm));
    }
    EXPECT_EQ(bits(y), bits(expected)) << device.name() << " " << layers;
  }
}

// A reset one step late leaves an agent that answers every cue alike, to the bit: no training can
// make it right more often than by chance.
TEST_EACH(RlReset, OneStepLateMakesTheTaskUnsolvable, Device device) {
  for (const std::string controller : controllers) {
    const auto late = answers(controller, device, {0, 1, 0, 0, 0});
    const auto right = answers(controller, device, {1, 0, 0, 0, 0});
    for (std::size_t cue = 1; cue < 4; ++cue) {
      EXPECT_EQ(late[cue], late[0]) << controller;
      EXPECT_NE(right[cue], right[0]) << controller;
    }
  }
}

// The rollout's steps are the training's sequence: the same policy, values and states.
TEST_EACH(RlCollect, StepsAreTheSequence, Device device) {
  for (const std::string controller : controllers) {
    AgentConfig config;
    config.controller.kind = controller;
    EnvironmentConfig task;
    task.delay = 5;
    config.observation = observation_size(task);
    config.actions = action_count(task);
    const Agent agent(config, device);
    Stream stream(device);
    Environments environments(task, 9, 0, device);
    mamba::StackState state = agent.make_state(9);
    Rollout rollout;
    for (int part = 0; part < 2; ++part) {  // the second begins within an episode
      rollout.prepare(agent, 9, 1, 17);
      collect(agent, environments, state, rollout, false, true, stream);
    }
    mamba::StackState again = rollout.initial[0].clone(stream);
    Tensor hidden({9, 17, agent.width()}, DType::f32, device);
    Tensor out({9 * 17, config.actions + 1}, DType::f32, device);
    agent.remember(rollout.observations, again, rollout.begins, hidden, nullptr, stream);
    agent.decide(hidden.view().reshape({9 * 17, agent.width()}), out, stream);
    stream.synchronize();
    // Products of other numbers of rows round differently, some hundred times.
    constexpr double bound = 200 * mamba::testing::f32_roundoff;
    EXPECT_LE(relative_error(values(rollout.values.view().reshape({9 * 17, 1})),
                             values(out.view().columns(config.actions, 1))),
              bound);
    EXPECT_LE(relative_error(values(state.layers[0].ssm), values(again.layers[0].ssm)), bound);
    const std::vector<double> logits = values(out), log_probs = values(rollout.log_probs);
    const Tensor actions = rollout.actions.to(Device::cpu());
    for (std::size_t i = 0; i < 9 * 17; ++i) {
      double sum = 0;
      for (std::size_t a = 0; a < 16; ++a) sum += std::exp(logits[i * 17 + a]);
      const auto action = static_cast<std::size_t>(actions.data<std::int32_t>()[i]);
      ASSERT_NEAR(log_probs[i], logits[i * 17 + action] - std::log(sum), 1e-5);
    }
  }
}

struct Lived {
  Rollout rollout;
  mamba::StackState state;
};

// Two rollouts of two chunks each, of which the later ones begin within episodes.
Lived live(const Agent& agent, const EnvironmentConfig& task, decltype(collect)* how) {
  constexpr std::int64_t batch = 9, length = 17;
  Stream stream(agent.device());
  Environments environments(task, batch, 3, agent.device());
  Lived lived;
  lived.state = agent.make_state(batch);
  for (int part = 0; part < 2; ++part) {
    lived.rollout.prepare(agent, batch, 2, length);
    how(agent, environments, lived.state, lived.rollout, false, true, stream);
  }
  stream.synchronize();
  return lived;
}

// Where one kernel steps a whole chunk: the same episodes, actions and, but for rounding, numbers.
void expect_alike(Lived& one, Lived& other) {
  for (auto member : {&Rollout::begins, &Rollout::decisions, &Rollout::actions, &Rollout::rewards,
                      &Rollout::ends}) {
    EXPECT_EQ(bits(one.rollout.*member), bits(other.rollout.*member));
  }
  const auto near = [](const Tensor& a, const Tensor& b) {
    // As in StepsAreTheSequence.
    EXPECT_LE(relative_error(values(a), values(b)), 200 * mamba::testing::f32_roundoff);
  };
  const std::vector<double> seen = values(one.rollout.observations);
  const std::vector<double> expected = values(other.rollout.observations);
  constexpr double four_ulps = 8 * mamba::testing::f32_roundoff;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    ASSERT_NEAR(seen[i], expected[i], four_ulps * std::abs(expected[i]));
  }
  near(one.rollout.log_probs, other.rollout.log_probs);
  near(one.rollout.values, other.rollout.values);
  near(one.rollout.last_values, other.rollout.last_values);
  near(one.state.layers[0].conv, other.state.layers[0].conv);
  near(one.state.layers[0].ssm, other.state.layers[0].ssm);
  near(one.rollout.initial[1].layers[0].ssm, other.rollout.initial[1].layers[0].ssm);
}

TEST_EACH(RlCollect, AKernelOfAllStepsIsTheSteps, mamba::testing::CudaDevice device) {
  for (const std::string controller : controllers) {
    for (const std::int64_t width : {16, 32, 64}) {
      for (const Task kind : {Task::delayed_cue, Task::t_maze}) {
        SCOPED_TRACE(controller + " " + std::to_string(width));
        EnvironmentConfig task;
        task.task = kind;
        task.delay = 5;
        AgentConfig config;
        config.controller.kind = controller;
        config.controller.width = width;
        config.controller.published_block = kind == Task::t_maze;
        config.observation = observation_size(task);
        config.actions = action_count(task);
        Agent agent(config, device);
        disturb(agent);
        Lived kernel = live(agent, task, &collect);
        Lived steps = live(agent, task, &collect_by_steps);
        expect_alike(kernel, steps);
      }
    }
  }
}

}  // namespace
}  // namespace mamba_rl
