// The pieces of PPO in the example library mamba_rl against closed forms and f64.
#include "rl/ppo/ppo.hpp"

#include "each.hpp"
#include "finite_differences.hpp"
#include "testing.hpp"

namespace mamba_rl {
namespace {

using mamba::Device;
using mamba::DType;
using mamba::Stream;
using mamba::Tensor;
using mamba::testing::Bounded;
using mamba::testing::devices;
using mamba::testing::f32_roundoff;
using mamba::testing::Random;
using mamba::testing::values;

struct AdvantageCase {
  Tensor rewards, values, ends, last, advantages, returns;

  AdvantageCase(const Tensor& r, const Tensor& v, const Tensor& e, const Tensor& l, Device device)
      : rewards(r.to(device)),
        values(v.to(device)),
        ends(e.to(device)),
        last(l.to(device)),
        advantages(r.shape(), DType::f32, device),
        returns(r.shape(), DType::f32, device) {}
  void run(float gamma, float lambda) {
    Stream stream(rewards.device());
    Advantages op;
    op.rewards = rewards;
    op.values = values;
    op.ends = ends;
    op.last_values = last;
    op.advantages = advantages;
    op.returns = returns;
    op.gamma = gamma;
    op.lambda = lambda;
    mamba_rl::run(op, stream);
    stream.synchronize();
  }
};

// A reward of one at the end of an episode and values of zero: the advantage k steps before is
// (gamma lambda)^k, and nothing passes the end.
TEST_EACH(RlAdvantages, OfOneRewardIsAGeometricSeries, Device device) {
  std::vector<float> rewards(12, 0.0f);
  std::vector<std::int32_t> ends(12, 0);
  rewards[7] = 1;
  ends[7] = 1;
  AdvantageCase one(Tensor::from(rewards, {1, 12}), Tensor::zeros({1, 12}, DType::f32),
                    Tensor::from(ends, {1, 12}), Tensor::zeros({1}, DType::f32), device);
  one.run(0.9f, 0.8f);
  const std::vector<double> got = values(one.advantages);
  for (int t = 0; t < 12; ++t) {
    const double expected = t > 7 ? 0 : std::pow(0.72, 7 - t);
    EXPECT_NEAR(got[static_cast<std::size_t>(t)], expected, 16 * f32_roundoff);
  }
}

// The sum of Schulman et al. 2016, equation 16, written out: no recursion.
TEST_EACH(RlAdvantages, AreTheWeightedSumOfWhatFollows, Device device) {
  Random random(4);
  constexpr std::int64_t batch = 3, time = 17;
  const Tensor rewards = random.normal_tensor({batch, time});
  const Tensor value = random.normal_tensor({batch, time});
  const Tensor last = random.normal_tensor({batch});
  std::vector<std::int32_t> ended;
  for (int i = 0; i < batch * time; ++i) ended.push_back(random.integer(0, 4) == 0 ? 1 : 0);
  const Tensor ends = Tensor::from(ended, {batch, time});
  const double gamma = 0.97f, lambda = 0.9f;
  std::vector<Bounded> advantages, returns;
  const std::vector<double> r = values(rewards), v = values(value), l = values(last);
  for (std::size_t b = 0; b < batch; ++b) {
    for (std::size_t t = 0; t < time; ++t) {
      double sum = 0, size = 0, weight = 1;
      for (std::size_t k = t; k < time; ++k) {
        const std::size_t i = b * time + k;
        const double next = ended[i] != 0 ? 0 : k + 1 < time ? v[i + 1] : l[b];
        sum += weight * (r[i] + gamma * next - v[i]);
        size += weight * (std::abs(r[i]) + std::abs(next) + std::abs(v[i]));
        weight *= gamma * lambda;
        if (ended[i] != 0) break;
      }
      // Five roundings a step, each of what has been added up by then.
      const double bound = 5 * f32_roundoff * static_cast<double>(time) * size;
      advantages.push_back({sum, bound});
      returns.push_back({sum + v[b * time + t], bound});
    }
  }
  AdvantageCase one(rewards, value, ends, last, device);
  one.run(0.97f, 0.9f);
  mamba::testing::expect_within(one.advantages, advantages, "advantages " + device.name());
  mamba::testing::expect_within(one.returns, returns, "returns " + device.name());
}

TEST_EACH(RlNormaliseAdvantages, SeesDecidingStepsAlone, Device device) {
  Random random(5);
  constexpr std::int64_t batch = 5, time = 9;
  std::vector<float> advantages;
  std::vector<std::int32_t> decisions;
  double count = 0, sum = 0, squares = 0;
  for (int i = 0; i < batch * time; ++i) {
    decisions.push_back(i % 4 == 1 ? 1 + i % 2 : 0);
    advantages.push_back(static_cast<float>(decisions.back() != 0 ? 3 + random.normal(2) : 1e20));
    if (decisions.back() == 0) continue;
    count += 1;
    sum += advantages.back();
    squares += double{advantages.back()} * advantages.back();
  }
  const double mean = sum / count, deviation = std::sqrt(squares / count - mean * mean);
  Stream stream(device);
  Tensor there = Tensor::from(advantages, {batch, time}).to(device);
  const Tensor marks = Tensor::from(decisions, {batch, time}).to(device);
  NormaliseAdvantages op;
  op.decisions = marks;
  op.advantages = there;
  op.epsilon = 0.25f;
  run(op, stream);
  stream.synchronize();
  const std::vector<double> got = values(there);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double expected = decisions[i] != 0 ? (advantages[i] - mean) / (deviation + 0.25) : 0;
    EXPECT_NEAR(got[i], expected, 8 * f32_roundoff * (1 + std::abs(expected)));
  }
}

struct LossCase {
  std::vector<double> log_prob, old_log_prob, entropy, value, advantage, target;

  explicit LossCase(std::int64_t n) {
    Random random(6);
    const auto draw = [&](double low, double high) {
      return static_cast<double>(static_cast<float>(random.uniform(low, high)));
    };
    for (std::int64_t i = 0; i < n; ++i) {
      log_prob.push_back(draw(-2, 0));
      old_log_prob.push_back(log_prob.back() + draw(-0.5, 0.5));
      entropy.push_back(draw(0, 2));
      value.push_back(draw(-1, 1));
      advantage.push_back(draw(-2, 2));
      target.push_back(draw(-1, 1));
    }
  }
  static Tensor tensor(const std::vector<double>& v, const mamba::Shape& shape) {
    return Tensor::from(std::vector<float>(v.begin(), v.end()), shape);
  }
};

constexpr double clip = 0.2f, value_weight = 0.5, entropy_weight = 0.25;

double term(double log_prob, double old_log_prob, double advantage) {
  const double ratio = std::exp(log_prob - old_log_prob);
  const double cut = std::min(std::max(ratio, 1 - clip), 1 + clip);
  return -std::min(ratio * advantage, cut * advantage);
}

TEST_EACH(RlPpoLoss, IsTheFormulaAndItsGradient, Device device) {
  constexpr std::int64_t n = 200, counted = 250;
  LossCase c(n);
  const auto loss = [&] {
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      sum += term(c.log_prob[i], c.old_log_prob[i], c.advantage[i]) +
             value_weight * (c.value[i] - c.target[i]) * (c.value[i] - c.target[i]) / 2 -
             entropy_weight * c.entropy[i];
    }
    return sum / counted;
  };
  Stream stream(device);
  const auto there = [&](const std::vector<double>& v) {
    return LossCase::tensor(v, {n}).to(device);
  };
  const Tensor log_prob = there(c.log_prob), old = there(c.old_log_prob), e = there(c.entropy),
               a = there(c.advantage), target = there(c.target);
  const Tensor value = LossCase::tensor(c.value, {n, 1}).to(device);
  Tensor dlog_prob({n}, DType::f32, device), dentropy({n}, DType::f32, device);
  Tensor dvalue({n, 1}, DType::f32, device), sums = Tensor::zeros({5}, DType::f32, device);
  PpoLoss op;
  op.log_prob = log_prob;
  op.entropy = e;
  op.values = value;
  op.old_log_prob = old;
  op.advantages = a;
  op.returns = target;
  op.dlog_prob = dlog_prob;
  op.dentropy = dentropy;
  op.dvalues = dvalue;
  op.sums = sums;
  op.clip = static_cast<float>(clip);
  op.value_weight = value_weight;
  op.entropy_weight = entropy_weight;
  op.counted = counted;
  run(op, stream);
  stream.synchronize();
  const auto slopes = [&](std::vector<double>& operand, const Tensor& gradient) {
    const std::vector<double> got = values(gradient);
    for (std::size_t i = 0; i < n; ++i) {
      const double at = operand[i], step = 1e-6;
      operand[i] = at + step;
      const double above = loss();
      operand[i] = at - step;
      const double below = loss();
      operand[i] = at;
      // Twenty roundings of a term of at most ten, over `counted`; 1e-9 for the difference.
      ASSERT_NEAR(got[i], (above - below) / (2 * step), 200 * f32_roundoff / counted + 1e-9);
    }
  };
  slopes(c.log_prob, dlog_prob);
  slopes(c.entropy, dentropy);
  slopes(c.value, dvalue);
  double policy = 0, squared = 0, entropies = 0, divergence = 0, clipped = 0;
  for (std::size_t i = 0; i < n; ++i) {
    policy += term(c.log_prob[i], c.old_log_prob[i], c.advantage[i]);
    squared += (c.value[i] - c.target[i]) * (c.value[i] - c.target[i]) / 2;
    entropies += c.entropy[i];
    const double change = c.log_prob[i] - c.old_log_prob[i];
    divergence += std::exp(change) - 1 - change;
    const double ratio = std::exp(change);
    clipped += (c.advantage[i] > 0 ? ratio > 1 + clip : ratio < 1 - clip) ? 1 : 0;
  }
  const std::vector<double> got = values(sums);
  const double expected[] = {policy, squared, entropies, divergence, clipped};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(got[i], expected[i], n * 20 * f32_roundoff);
}

}  // namespace
}  // namespace mamba_rl
