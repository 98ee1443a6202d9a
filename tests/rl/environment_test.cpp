// Environments of the example library mamba_rl: what they show, when they end, how they are drawn.
#include "rl/env/environments.hpp"

#include <set>

#include "each.hpp"
#include "rl/env/choice.hpp"
#include "testing.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::devices;
using mamba::testing::expect_error;

EnvironmentConfig config_of(Task task, std::int32_t delay, std::uint64_t seed = 3) {
  EnvironmentConfig config;
  config.task = task;
  config.delay = delay;
  config.seed = seed;
  return config;
}

// One environment, stepped by hand.
struct Single {
  EnvironmentConfig config;
  std::int32_t index = 0;
  EnvironmentState state = {};

  std::vector<float> see() const {
    std::vector<float> observation(static_cast<std::size_t>(observation_size(config)));
    observe(config, index, state, observation.data());
    return observation;
  }
  // The observation without its noise.
  std::vector<float> signal() const {
    std::vector<float> all = see();
    all.pop_back();
    return all;
  }
  Outcome take(std::int32_t action) { return act(config, index, state, action); }
  std::int32_t cue() const { return cue_at(config, index, state, 0); }
};

// The known answers of Random123, kat_vectors.
TEST(RlRandom, PhiloxIsThePublishedOne) {
  const RandomWords zeros = philox(0, {0, 0, 0, 0});
  EXPECT_EQ(zeros.a, 0x6627e8d5u);
  EXPECT_EQ(zeros.b, 0xe169c58du);
  EXPECT_EQ(zeros.c, 0xbc57ac4cu);
  EXPECT_EQ(zeros.d, 0x9b00dbd8u);
  const RandomWords pi =
      philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344});
  EXPECT_EQ(pi.a, 0xd16cfe09u);
  EXPECT_EQ(pi.b, 0x94fdccebu);
  EXPECT_EQ(pi.c, 0x5001e420u);
  EXPECT_EQ(pi.d, 0x24126ea1u);
}

double ulps(float got, double exact) {
  const float near = std::abs(static_cast<float>(exact));
  return std::abs(got - exact) / (std::nextafter(near, 10.0f) - near);
}

TEST(RlRandom, NormalIsTheFormulaWithinFourUlps) {
  double worst = 0;
  for (std::uint32_t i = 0; i < 200000; ++i) {
    const RandomWords words = philox(1, {i, 0, 0, 0});
    // The ends of the range too.
    const std::uint32_t first = i == 0 ? 0 : i == 1 ? 0xffffffffu : words.a;
    const double u = (static_cast<double>(first >> 9) + 0.5) * 0x1p-23;
    const double v = (static_cast<double>(words.b >> 9) + 0.5) * 0x1p-23;
    const double exact = std::sqrt(-2 * std::log(u)) * std::cos(2 * 3.14159265358979324 * v);
    worst = std::max(worst, ulps(normal(first, words.b), exact));
  }
  EXPECT_LE(worst, 4);
}

TEST(RlEnvironment, DelayedCueShowsTheCueOnceAndAsksAfterTheDelay) {
  Single one{config_of(Task::delayed_cue, 5)};
  for (int episode = 0; episode < 50; ++episode) {
    const std::int32_t cue = one.cue();
    std::vector<float> first = {0, 0, 0, 0, 1, 0};
    for (std::size_t bit = 0; bit < 4; ++bit) first[bit] = (cue >> bit & 1) != 0 ? 1.0f : -1.0f;
    EXPECT_EQ(one.signal(), first);
    EXPECT_EQ(decision(one.config, one.state), irrelevant);
    for (int t = 0; t <= 5; ++t) {  // the cue and the delay
      const Outcome outcome = one.take(cue);
      EXPECT_FALSE(outcome.ends);
      EXPECT_EQ(outcome.reward, 0);
      EXPECT_EQ(one.signal(), (std::vector<float>{0, 0, 0, 0, 0, t == 5 ? 1.0f : 0.0f}));
    }
    EXPECT_EQ(decision(one.config, one.state), query);
    const bool right = episode % 3 == 0;
    const Outcome outcome = one.take(right ? cue : (cue + 1) % 16);
    EXPECT_EQ(outcome.reward, right ? 1 : 0);
    EXPECT_TRUE(outcome.ends);
    EXPECT_EQ(one.state.episode, episode + 1);
    EXPECT_EQ(one.state.step, 0);
  }
}

TEST(RlEnvironment, BanditAsksForWhatItShows) {
  Single one{config_of(Task::bandit, 1)};
  for (int episode = 0; episode < 20; ++episode) {
    const std::vector<float> seen = one.signal();
    std::int32_t shown = 0;
    for (std::int32_t bit = 0; bit < 4; ++bit) {
      shown |= seen[static_cast<std::size_t>(bit)] > 0 ? 1 << bit : 0;
    }
    EXPECT_EQ(seen[4] + seen[5], 2);
    const Outcome outcome = one.take(shown);
    EXPECT_EQ(outcome.reward, 1);
    EXPECT_TRUE(outcome.ends);
  }
}

TEST(RlEnvironment, RepeatLastAsksForTheStepBefore) {
  Single one{config_of(Task::repeat_last, 6)};
  std::int32_t last = 0;
  for (std::int32_t t = 0; t <= 6; ++t) {
    const std::vector<float> seen = one.signal();
    std::int32_t shown = 0;
    for (std::int32_t bit = 0; bit < 4; ++bit) {
      shown |= seen[static_cast<std::size_t>(bit)] > 0 ? 1 << bit : 0;
    }
    EXPECT_EQ(decision(one.config, one.state), t > 0 ? query : irrelevant);
    const Outcome outcome = one.take(t % 2 == 0 ? last : (last + 1) % 16);
    EXPECT_EQ(outcome.reward, t > 0 && t % 2 == 0 ? 1 : 0);
    EXPECT_EQ(outcome.ends, t == 6);
    last = shown;
  }
}

TEST(RlEnvironment, TMazeIsWalkedAndRemembered) {
  Single one{config_of(Task::t_maze, 3)};
  EXPECT_EQ(action_count(one.config), 3);
  for (int episode = 0; episode < 20; ++episode) {
    const std::int32_t cue = one.cue();
    EXPECT_EQ(one.signal(), (std::vector<float>{cue != 0 ? 1.0f : -1.0f, 0, 0, 0, 1, 0}));
    EXPECT_FLOAT_EQ(one.take(1).reward, -0.1f);  // nowhere to turn
    for (int t = 0; t < 3; ++t) {
      EXPECT_EQ(decision(one.config, one.state), deciding);
      EXPECT_EQ(one.take(0).reward, 0);
    }
    EXPECT_EQ(one.signal(), (std::vector<float>{0, 0, 0, 0, 0, 1}));
    EXPECT_FLOAT_EQ(one.take(0).reward, -0.1f);  // a wall
    const Outcome end = one.take(episode % 2 == 0 ? 1 + cue : 2 - cue);
    EXPECT_TRUE(end.ends);
    EXPECT_EQ(end.reward, episode % 2 == 0 ? 1 : 0);
  }
  int steps = 1;
  while (!one.take(2).ends) ++steps;
  EXPECT_EQ(steps, 4 * (3 + 2));
}

TEST(RlEnvironment, CuesAreUniformAndNoiseIsNormal) {
  const EnvironmentConfig config = config_of(Task::delayed_cue, 2);
  constexpr int environments = 64, episodes = 250, count = environments * episodes;
  std::vector<int> seen(16, 0);
  double sum = 0, squares = 0, fourths = 0;
  for (std::int32_t e = 0; e < environments; ++e) {
    for (std::int32_t episode = 0; episode < episodes; ++episode) {
      Single one{config, e, {episode, 1, 0}};
      ++seen[static_cast<std::size_t>(one.cue())];
      const double noise = one.see().back() / config.noise;
      sum += noise;
      squares += noise * noise;
      fourths += noise * noise * noise * noise;
    }
  }
  // Five standard deviations of what independent draws would give.
  for (const int times : seen) {
    EXPECT_NEAR(times, count / 16.0, 5 * std::sqrt(count * 15.0 / 256));
  }
  EXPECT_NEAR(sum / count, 0, 5 / std::sqrt(count));
  EXPECT_NEAR(squares / count, 1, 5 * std::sqrt(2.0 / count));
  EXPECT_NEAR(fourths / count, 3, 5 * std::sqrt(96.0 / count));
}

TEST(RlEnvironment, SeedEnvironmentAndEpisodeEachMatter) {
  const auto cues = [](std::uint64_t seed, std::int32_t environment) {
    Single one{config_of(Task::delayed_cue, 2, seed), environment};
    std::vector<std::int32_t> list;
    for (std::int32_t episode = 0; episode < 32; ++episode) {
      one.state.episode = episode;
      list.push_back(one.cue());
    }
    return list;
  };
  const std::set<std::vector<std::int32_t>> all{cues(1, 0), cues(1, 1), cues(2, 0),
                                                cues(std::uint64_t{1} << 32 | 1, 0)};
  EXPECT_EQ(all.size(), 4u);
  EXPECT_EQ(cues(1, 0), cues(1, 0));
}

// Buffers of some steps of a batch, on a device.
struct Buffers {
  Tensor observations, begins, decisions, actions, log_probs, rewards, ends;

  Buffers(std::int64_t batch, std::int64_t time, const EnvironmentConfig& config, Device device)
      : observations({batch, time, observation_size(config)}, DType::f32, device) {
    for (Tensor* t : {&begins, &decisions, &actions, &ends}) {
      *t = Tensor({batch, time}, DType::i32, device);
    }
    for (Tensor* t : {&log_probs, &rewards}) *t = Tensor({batch, time}, DType::f32, device);
  }
  StepViews at(std::int64_t t) {
    const auto column = [t](Tensor& tensor) { return tensor.view().columns(t, 1); };
    return {observations.view().steps(t, 1),
            column(begins),
            column(decisions),
            column(actions),
            column(log_probs),
            column(rewards),
            column(ends)};
  }
};

// Some steps with logits that favour one action or other.
Buffers play(const EnvironmentConfig& config, std::int32_t count, std::int32_t first,
             std::int64_t time, Device device) {
  Stream stream(device);
  Environments environments(config, count, first, device);
  Buffers buffers(count, time, config, device);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < std::int64_t{count} * action_count(config); ++i) {
    logits.push_back(static_cast<float>(i % 5) * 0.25f);
  }
  // Rows of equal logits whatever the batch, so that rows can be compared across batches.
  for (std::int64_t b = 1; b < count; ++b) {
    std::copy_n(logits.begin(), action_count(config), logits.begin() + b * action_count(config));
  }
  const Tensor there = Tensor::from(logits, {count, action_count(config)}).to(device);
  for (std::int64_t t = 0; t < time; ++t) {
    environments.observe(buffers.at(t), stream);
    environments.act(there, false, buffers.at(t), stream);
  }
  stream.synchronize();
  return buffers;
}

const Task tasks[] = {Task::delayed_cue, Task::bandit, Task::repeat_last, Task::t_maze};

TEST_EACH(RlEnvironments, ARowDoesNotDependOnItsCompany, Device device) {
  for (const Task task : tasks) {
    const EnvironmentConfig config = config_of(task, 3);
    Buffers together = play(config, 7, 10, 30, device);
    Buffers alone = play(config, 1, 14, 30, device);
    const auto row = [](Tensor& tensor, std::int64_t b) {
      return mamba::testing::bits(tensor.view().rows(b, 1));
    };
    EXPECT_EQ(row(together.observations, 4), row(alone.observations, 0));
    EXPECT_EQ(row(together.actions, 4), row(alone.actions, 0));
    EXPECT_EQ(row(together.rewards, 4), row(alone.rewards, 0));
    EXPECT_EQ(row(together.begins, 4), row(alone.begins, 0));
    EXPECT_EQ(row(together.ends, 4), row(alone.ends, 0));
  }
}

TEST(RlEnvironments, AnEpisodeBeginsAfterEveryEnd) {
  Buffers buffers = play(config_of(Task::delayed_cue, 3), 4, 0, 23, Device::cpu());
  for (std::int64_t b = 0; b < 4; ++b) {
    for (std::int64_t t = 0; t < 23; ++t) {
      const std::int64_t i = b * 23 + t;
      EXPECT_EQ(buffers.begins.data<std::int32_t>()[i], t % 5 == 0 ? 1 : 0);
      EXPECT_EQ(buffers.ends.data<std::int32_t>()[i], t % 5 == 4 ? 1 : 0);
      EXPECT_EQ(buffers.decisions.data<std::int32_t>()[i], t % 5 == 4 ? query : irrelevant);
    }
  }
}

// The same episodes wherever they run; noise differs by the fusing of products and sums at most.
TEST_EACH(RlEnvironments, EveryDeviceHasTheSameEpisodes, Device device) {
  for (const Task task : tasks) {
    SCOPED_TRACE(device.name());
    const EnvironmentConfig config = config_of(task, 4, 77);
    constexpr std::int64_t batch = 33, time = 40;
    Buffers here = play(config, batch, 5, time, Device::cpu());
    Buffers there = play(config, batch, 5, time, device);
    for (auto member : {&Buffers::begins, &Buffers::decisions, &Buffers::actions, &Buffers::ends,
                        &Buffers::rewards}) {
      EXPECT_EQ(mamba::testing::bits(here.*member), mamba::testing::bits(there.*member));
    }
    const std::vector<double> expected = mamba::testing::values(here.observations);
    const std::vector<double> got = mamba::testing::values(there.observations);
    for (std::size_t i = 0; i < got.size(); ++i) {
      const bool noise = i % 7 == 6;
      ASSERT_LE(ulps(static_cast<float>(got[i]), expected[i]), noise ? 4 : 0) << i;
    }
  }
}

TEST(RlEnvironments, RestartBeginsOtherEpisodesOfAnotherDelay) {
  Stream stream;
  const EnvironmentConfig config = config_of(Task::delayed_cue, 3);
  Environments environments(config, 2, 0);
  Buffers buffers(2, 1, config, Device::cpu());
  const Tensor logits = Tensor::zeros({2, 16}, DType::f32);
  environments.act(logits, true, buffers.at(0), stream);
  environments.restart(8, stream);
  EXPECT_EQ(environments.config().delay, 8);
  environments.observe(buffers.at(0), stream);
  EXPECT_EQ(buffers.begins.data<std::int32_t>()[0], 1);
  EXPECT_EQ(environments.states().data<std::int32_t>()[0], 1);
}

TEST(RlEnvironments, WhatCannotBeIsNamed) {
  EnvironmentConfig config = config_of(Task::delayed_cue, 3);
  const auto make = [&] { Environments(config, 2, 0); };
  config.num_bits = 17;
  expect_error<mamba::ArgumentError>("Environments: num_bits: expected 1 to 16, got 17", make);
  config.num_bits = 4;
  config.delay = 0;
  expect_error<mamba::ArgumentError>("Environments: delay: expected 1 to 268435456, got 0", make);
}

TEST(RlChoice, SamplesThePolicy) {
  const std::vector<float> logits = {0.5f, -1.0f, 2.0f, 0.0f};
  double sum = 0;
  std::vector<double> p;
  for (const float l : logits) sum += std::exp(l);
  for (const float l : logits) p.push_back(std::exp(l) / sum);
  std::vector<int> seen(4, 0);
  constexpr int draws = 20000;
  for (int i = 0; i < draws; ++i) {
    const float u = (static_cast<float>(i) + 0.5f) / draws;
    const Choice choice = choose(logits.data(), 4, u, false);
    ++seen[static_cast<std::size_t>(choice.action)];
    ASSERT_NEAR(choice.log_prob, std::log(p[static_cast<std::size_t>(choice.action)]), 1e-6);
  }
  for (std::size_t a = 0; a < 4; ++a) EXPECT_NEAR(seen[a], draws * p[a], 2);
  EXPECT_EQ(choose(logits.data(), 4, 0.01f, true).action, 2);
}

}  // namespace
}  // namespace mamba_rl
