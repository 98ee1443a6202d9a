// Cross-entropy, activations, the categorical distribution and the optimiser's step against loops
// in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <mamba/train_ops.hpp>

#include "each.hpp"
#include "finite_differences.hpp"
#include "ops/dense_reference.hpp"
#include "ops/tracked.hpp"

namespace mamba::testing {
namespace {

// log(sum exp) of `count` logits.
double log_sum_exp(const double* logits, std::size_t count) {
  double most = logits[0], sum = 0;
  for (std::size_t i = 1; i < count; ++i) most = std::max(most, logits[i]);
  for (std::size_t i = 0; i < count; ++i) sum += std::exp(logits[i] - most);
  return most + std::log(sum);
}

struct LossReference {
  std::vector<Bounded> loss, dlogits;
};

// In f32: logit - most is one rounding, its exponential `exp_roundings` and as many units of the
// exponent; the sum has `vocab` additions, the logarithm 2 roundings and the sum's relative error.
LossReference cross_entropy(const std::vector<double>& logits,
                            const std::vector<std::int32_t>& targets, double scale) {
  LossReference result;
  const std::size_t vocab = logits.size() / targets.size();
  for (std::size_t r = 0; r < targets.size(); ++r) {
    const double* row = logits.data() + r * vocab;
    const double total = log_sum_exp(row, vocab);
    double most = row[0];
    for (std::size_t v = 0; v < vocab; ++v) most = std::max(most, row[v]);
    const double u = f32_roundoff;
    const auto exponent_error = [&](double logit) {
      return u * (most - logit) + exp_roundings * u;
    };
    double sum_error = static_cast<double>(vocab) * u;  // relative
    for (std::size_t v = 0; v < vocab; ++v) {
      sum_error += std::exp(row[v] - total) * exponent_error(row[v]) + f32_smallest;
    }
    const bool ignored = targets[r] < 0;
    const double loss = ignored ? 0 : total - row[targets[r]];
    const double parts =
        std::abs(most - (ignored ? most : row[targets[r]])) + std::abs(total - most);
    result.loss.push_back(
        {loss, ignored ? 0 : second_order * (sum_error + 4 * u * parts + 2 * u * loss)});
    for (std::size_t v = 0; v < vocab; ++v) {
      const double p = std::exp(row[v] - total);
      const double onehot = static_cast<std::size_t>(targets[r]) == v ? 1 : 0;
      const double bound =
          p * (sum_error + exponent_error(row[v]) + 3 * u) + 2 * u * std::abs(p - onehot);
      result.dlogits.push_back(
          ignored ? Bounded{}
                  : Bounded{scale * (p - onehot),
                            std::abs(scale) * second_order * bound + f32_smallest});
    }
  }
  return result;
}

TEST_EACH(CrossEntropy, MatchesTheReference, Device device, DType dtype) {
  for (const std::int64_t vocab : {1, 2, 15, 16, 17, 256, 1000}) {
    for (const double spread : {1.0, 30.0}) {
      Random random(1);
      const Shape shape{3, 4, vocab};
      const Tensor host = random.normal_tensor(shape, dtype, spread);
      std::vector<std::int32_t> targets(12);
      for (auto& t : targets) t = static_cast<std::int32_t>(random.integer(-1, vocab - 1));
      const LossReference expected = cross_entropy(values(host), targets, 0.25);
      each_backend(device, [&] {
        for (const DType gradient : {dtype, DType::f32}) {
          const Padded logits(host, device, 3);
          const Tensor target = Tensor::from(targets, {3, 4}).to(device);
          const Guarded loss({3, 4}, DType::f32, device), dlogits(shape, gradient, device, 5);
          CrossEntropy op;
          op.logits = logits.view();
          op.targets = target;
          op.loss = loss.view();
          op.dlogits = dlogits.view();
          op.scale = 0.25f;
          Stream stream(device, 2);
          run(op, stream);
          stream.synchronize();
          expect_within(loss.view(), expected.loss, "loss");
          expect_within(dlogits.view(), expected.dlogits, "dlogits");
          loss.expect_untouched("loss");
          dlogits.expect_untouched("dlogits");
          const auto apart = bits(dlogits.view());
          if (gradient == dtype) {  // in place
            op.dlogits = logits.view();
            run(op, stream);
            stream.synchronize();
            EXPECT_EQ(bits(logits.view()), apart);
          }
        }
      });
    }
  }
}

TEST(CrossEntropy, ReferenceIsTheDerivativeOfItsLoss) {
  Random random(1);
  std::vector<double> logits(3 * 7);
  for (double& v : logits) v = random.normal();
  const std::vector<std::int32_t> targets{2, -1, 6};
  expect_derivative("logits", logits, cross_entropy(logits, targets, 1).dlogits, [&] {
    double total = 0;
    for (const Bounded& loss : cross_entropy(logits, targets, 1).loss) total += loss.value;
    return total;
  });
}

TEST_EACH(CrossEntropy, HugeLogitsStayFiniteAndNaNShows, Device device) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tensor logits = Tensor::from<float>({1e4f, -1e4f, 0, 1, nan, 2}, {2, 3}).to(device);
  const Tensor targets = Tensor::from<std::int32_t>({1, 0}, {2}).to(device);
  Tensor loss({2}, DType::f32, device), dlogits({2, 3}, DType::f32, device);
  CrossEntropy op;
  op.logits = logits;
  op.targets = targets;
  op.loss = loss;
  op.dlogits = dlogits;
  run(op, default_stream(device));
  EXPECT_EQ(values(loss)[0], 2e4);
  EXPECT_TRUE(std::isnan(values(loss)[1]));
  EXPECT_EQ(values(dlogits)[0], 1);
  EXPECT_EQ(values(dlogits)[1], -1);
}

TEST(CrossEntropy, ErrorsNameTheOperand) {
  Stream& stream = default_stream();
  const Tensor logits = Tensor::zeros({2, 3}, DType::f32);
  const Tensor targets = Tensor::from<std::int32_t>({1, 3}, {2});
  Tensor loss({2}, DType::f32), wide({3}, DType::f32);
  CrossEntropy op;
  op.logits = logits;
  op.targets = targets;
  op.loss = wide;
  expect_error<ArgumentError>("cross_entropy: loss: expected [2], got [3]",
                              [&] { run(op, stream); });
  op.loss = loss;
  expect_error<ArgumentError>("cross_entropy: targets: expected ids up to 2, got 3",
                              [&] { run(op, stream); });
}

TEST_EACH(Activate, MatchesTheReferenceAndSoDoesItsGradient, Device device, DType dtype) {
  for (const Activation function : {Activation::relu, Activation::silu}) {
    for (const Shape& shape : {Shape{2, 5, 17}, Shape{1}, Shape{40, 33}}) {
      Random random(1);
      const Tensor x = random.normal_tensor(shape, dtype, 5),
                   dy = random.normal_tensor(shape, dtype);
      std::vector<Bounded> y, dx;
      const std::vector<double> xs = values(x), gs = values(dy);
      for (std::size_t i = 0; i < xs.size(); ++i) {
        const bool relu = function == Activation::relu;
        y.push_back(relu ? Tracked(std::max(xs[i], 0.0)) : silu(xs[i]));
        dx.push_back(relu ? Tracked(xs[i] > 0 ? gs[i] : 0) : Tracked(gs[i]) * silu_slope(xs[i]));
      }
      each_backend(device, [&] {
        const Padded from(x, device, shape.rank() > 1 ? 3 : 0);
        const Tensor gradient = dy.to(device);
        const Guarded to(shape, dtype, device), back(shape, dtype, device);
        Activate op;
        op.x = from.view();
        op.y = to.view();
        op.function = function;
        ActivateGrad grad;
        grad.x = from.view();
        grad.dy = gradient;
        grad.dx = back.view();
        grad.function = function;
        run(op, default_stream(device));
        run(grad, default_stream(device));
        expect_within(to.view(), y, "y");
        expect_within(back.view(), dx, "dx");
        to.expect_untouched("y");
        back.expect_untouched("dx");
      });
    }
  }
}

// ---- the distribution of a policy --------------------------------------------------------------

struct Policy {
  std::vector<double> logits;
  std::vector<std::int32_t> actions;
  std::vector<double> dlog_prob, dentropy;
  std::size_t count;

  double log_p(std::size_t r, std::size_t v) const {
    return logits[r * count + v] - log_sum_exp(logits.data() + r * count, count);
  }
  double entropy(std::size_t r) const {
    double sum = 0;
    for (std::size_t v = 0; v < count; ++v) sum -= std::exp(log_p(r, v)) * log_p(r, v);
    return sum;
  }
  double loss() const {
    double total = 0;
    for (std::size_t r = 0; r < actions.size(); ++r) {
      total +=
          dlog_prob[r] * log_p(r, static_cast<std::size_t>(actions[r])) + dentropy[r] * entropy(r);
    }
    return total;
  }
  // About 20 roundings of what is added, and `count` of each sum.
  double bound(double magnitude) const {
    return (20 + 2 * static_cast<double>(count)) * f32_roundoff * magnitude + f32_smallest;
  }
  std::vector<Bounded> gradient() const {
    std::vector<Bounded> all;
    for (std::size_t r = 0; r < actions.size(); ++r) {
      for (std::size_t v = 0; v < count; ++v) {
        const double p = std::exp(log_p(r, v));
        const double onehot = static_cast<std::size_t>(actions[r]) == v ? 1 : 0;
        const double value =
            dlog_prob[r] * (onehot - p) - dentropy[r] * p * (log_p(r, v) + entropy(r));
        const double magnitude =
            std::abs(dlog_prob[r]) * (onehot + p) +
            std::abs(dentropy[r]) * p * (std::abs(log_p(r, v)) + entropy(r) + 1);
        all.push_back({value, bound(magnitude * (1 + std::abs(log_p(r, v))))});
      }
    }
    return all;
  }
};

TEST_EACH(Categorical, MatchesTheReferenceAndSoDoesItsGradient, Device device) {
  for (const std::int64_t count : {1, 2, 5, 33}) {
    Random random(1);
    const std::int64_t rows = 9;
    const Tensor logits = random.normal_tensor({rows, count}, DType::f32, 3);
    const Tensor dlog_prob = random.normal_tensor({rows}), dentropy = random.normal_tensor({rows});
    Policy policy{
        values(logits), {}, values(dlog_prob), values(dentropy), static_cast<std::size_t>(count)};
    for (std::int64_t r = 0; r < rows; ++r) {
      policy.actions.push_back(static_cast<std::int32_t>(random.integer(0, count - 1)));
    }
    std::vector<Bounded> log_prob, entropy, log_probs;
    for (std::size_t r = 0; r < policy.actions.size(); ++r) {
      const auto bounded_log = [&](std::size_t v) {
        const double log = policy.log_p(r, v);
        return Bounded{
            log, policy.bound(1 + std::abs(log) + std::abs(policy.logits[r * policy.count + v]))};
      };
      log_prob.push_back(bounded_log(static_cast<std::size_t>(policy.actions[r])));
      entropy.push_back({policy.entropy(r), policy.bound(4 + policy.entropy(r))});
      for (std::size_t v = 0; v < policy.count; ++v) log_probs.push_back(bounded_log(v));
    }
    const Padded from(logits, device, 2);
    const Tensor actions = Tensor::from(policy.actions, {rows}).to(device);
    const Tensor up = dlog_prob.to(device), up_entropy = dentropy.to(device);
    const Guarded one({rows}, DType::f32, device), h({rows}, DType::f32, device);
    const Guarded all({rows, count}, DType::f32, device, 3),
        back({rows, count}, DType::f32, device, 1);
    Categorical op;
    op.logits = from.view();
    op.actions = actions;
    op.log_prob = one.view();
    op.entropy = h.view();
    op.log_probs = all.view();
    run(op, default_stream(device));
    CategoricalGrad grad;
    grad.logits = from.view();
    grad.actions = actions;
    grad.dlog_prob = up;
    grad.dentropy = up_entropy;
    grad.dlogits = back.view();
    run(grad, default_stream(device));
    expect_within(one.view(), log_prob, "log_prob");
    expect_within(h.view(), entropy, "entropy");
    expect_within(all.view(), log_probs, "log_probs");
    expect_within(back.view(), policy.gradient(), "dlogits");
    for (const Guarded* output : {&one, &h, &all, &back}) output->expect_untouched("categorical");
    expect_derivative("logits", policy.logits, policy.gradient(), [&] { return policy.loss(); });
  }
}

TEST_EACH(Categorical, AnImpossibleActionHasNoEntropyAndNoGradient, Device device) {
  const float never = -std::numeric_limits<float>::infinity();
  const Tensor logits = Tensor::from<float>({0, never}, {1, 2}).to(device);
  const Tensor actions = Tensor::from<std::int32_t>({0}, {1}).to(device);
  const Tensor one = Tensor::from<float>({1}, {1}).to(device);
  Tensor entropy({1}, DType::f32, device), dlogits({1, 2}, DType::f32, device);
  Categorical op;
  op.logits = logits;
  op.entropy = entropy;
  run(op, default_stream(device));
  CategoricalGrad grad;
  grad.logits = logits;
  grad.actions = actions;
  grad.dlog_prob = grad.dentropy = one;
  grad.dlogits = dlogits;
  run(grad, default_stream(device));
  EXPECT_EQ(values(entropy), std::vector<double>{0});
  EXPECT_EQ(values(dlogits), (std::vector<double>{0, 0}));
}

TEST(Categorical, ErrorsNameTheOperand) {
  const Tensor logits = Tensor::zeros({1, 2}, DType::f32);
  const Tensor actions = Tensor::from<std::int32_t>({2}, {1});
  Tensor log_prob({1}, DType::f32);
  Categorical op;
  op.logits = logits;
  op.log_prob = log_prob;
  expect_error<ArgumentError>("categorical: actions: expected a tensor, got none",
                              [&] { run(op, default_stream()); });
  op.actions = actions;
  expect_error<ArgumentError>("categorical: actions: expected 0 to 1, got 2",
                              [&] { run(op, default_stream()); });
}

// ---- the optimiser -----------------------------------------------------------------------------

TEST_EACH(SumSquares, IsWithin128RoundingsAndTheSameWithAnyThreads, Device device) {
  for (const std::int64_t count : {0, 1, 15, 16, 17, 1023, 1024, 1025, 300000}) {
    Random random(1);
    const Tensor host = random.normal_tensor({count});
    double expected = 0;
    for (double v : values(host)) expected += v * v;
    const Tensor x = host.to(device);
    std::vector<double> results;
    for (int threads : {1, 2, 3}) {
      Stream stream(device, threads);
      Tensor y = Tensor::zeros({1}, DType::f32, device);
      SumSquares op;
      op.x = x;
      op.y = y;
      run(op, stream);
      stream.synchronize();
      EXPECT_NEAR(values(y)[0], expected, 128 * f32_roundoff * expected);
      results.push_back(values(y)[0]);
      op.accumulate = true;
      run(op, stream);
      stream.synchronize();
      EXPECT_NEAR(values(y)[0], 2 * results[0], 2 * f32_roundoff * results[0]);
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  }
}

struct AdamWCase {
  float max_norm = 0, weight_decay = 0.1f;
  DType stored = DType::bf16;
};

void expect_adamw(const AdamWCase& c, Device device) {
  const std::int64_t count = 1000;
  Random random(1);
  const Tensor start = random.normal_tensor({count});
  Tensor weight = start.to(device), stored({count}, c.stored, device);
  Tensor m = Tensor::zeros({count}, DType::f32, device),
         v = Tensor::zeros({count}, DType::f32, device);
  std::vector<double> w = values(start), mean(w.size(), 0), square(w.size(), 0);
  std::vector<Tracked> tracked(w.begin(), w.end()), tm(w.size()), tv(w.size());
  Stream& stream = default_stream(device);
  for (std::int64_t step = 1; step <= 5; ++step) {
    const Tensor gradient = random.normal_tensor({count}).to(device);
    const std::vector<double> gs = values(gradient);
    double squares = 0;
    for (double g : gs) squares += g * g;
    const Tensor sum = Tensor::from<float>({static_cast<float>(squares)}, {1}).to(device);
    AdamWStep op;
    op.weight = weight;
    op.stored = stored;
    op.gradient = gradient;
    op.m = m;
    op.v = v;
    op.squares = sum;
    op.max_norm = c.max_norm;
    op.weight_decay = c.weight_decay;
    op.learning_rate = 0.01f;
    op.step = step;
    run(op, stream);
    const double norm = std::sqrt(squares);
    const double scale = c.max_norm > 0 && norm > c.max_norm ? c.max_norm / norm : 1;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const Tracked g = Tracked(gs[i]) * Tracked(scale).rounded(3);
      tm[i] = Tracked(op.beta1) * tm[i] + Tracked(1.0 - op.beta1).rounded() * g;
      tv[i] = Tracked(op.beta2) * tv[i] + Tracked(1.0 - op.beta2).rounded() * g * g;
      const Tracked m_hat = tm[i] * Tracked(1 / (1 - std::pow(double{op.beta1}, step))).rounded();
      const Tracked v_hat = tv[i] * Tracked(1 / (1 - std::pow(double{op.beta2}, step))).rounded();
      const double root = std::sqrt(v_hat.value) + op.epsilon;
      const double root_bound = 0.5 / std::sqrt(v_hat.value) * v_hat.bound;
      const Tracked inverse = Tracked(1 / root, root_bound / (root * root)).rounded(3);
      const Tracked step_by = m_hat * inverse + Tracked(op.weight_decay) * tracked[i];
      tracked[i] = tracked[i] - Tracked(op.learning_rate) * step_by;
    }
  }
  stream.synchronize();
  const std::vector<Bounded> expected(tracked.begin(), tracked.end());
  expect_within(weight, expected, "weight");
  expect_within(stored, expected, "stored");
}

TEST_EACH(AdamWStep, MatchesTheReferenceOverSteps, Device device, DType stored) {
  for (const float max_norm : {0.0f, 1.0f, 1e6f}) {
    for (const float decay : {0.0f, 0.1f}) expect_adamw({max_norm, decay, stored}, device);
  }
}

TEST_EACH(AdamWStep, ANonFiniteNormChangesNothing, Device device) {
  Random random(1);
  Tensor weight = random.normal_tensor({10}).to(device), m = random.normal_tensor({10}).to(device),
         v = random.uniform_tensor({10}, 0, 1).to(device);
  const Tensor gradient = random.normal_tensor({10}).to(device);
  const auto before = bits(weight), m_before = bits(m), v_before = bits(v);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Tensor squares = Tensor::from<float>({bad}, {1}).to(device);
    AdamWStep op;
    op.weight = weight;
    op.gradient = gradient;
    op.m = m;
    op.v = v;
    op.squares = squares;
    run(op, default_stream(device));
    EXPECT_EQ(bits(weight), before);
    EXPECT_EQ(bits(m), m_before);
    EXPECT_EQ(bits(v), v_before);
  }
}

// Powers of two are divided out without a rounding.
TEST_EACH(AdamWStep, ALossScaleLeavesEveryBitAsItIs, Device device) {
  for (const float max_norm : {0.0f, 1.0f, 1e6f}) {
    std::vector<std::vector<unsigned char>> weights;
    for (const float scale : {1.0f, 65536.0f, 0.25f}) {
      Random random(1);
      Tensor weight = random.normal_tensor({100}).to(device);
      Tensor m = random.normal_tensor({100}).to(device);
      Tensor v = random.uniform_tensor({100}, 0, 1).to(device);
      const Tensor gradient =
          random.tensor({100}, DType::f32, [&] { return scale * random.normal(); }).to(device);
      const Tensor squares = Tensor::from<float>({100 * scale * scale}, {1}).to(device);
      AdamWStep op;
      op.weight = weight;
      op.gradient = gradient;
      op.m = m;
      op.v = v;
      op.squares = squares;
      op.max_norm = max_norm;
      op.loss_scale = scale;
      run(op, default_stream(device));
      default_stream(device).synchronize();
      weights.push_back(bits(weight));
    }
    EXPECT_EQ(weights[1], weights[0]);
    EXPECT_EQ(weights[2], weights[0]);
  }
}

TEST(AdamWStep, ErrorsNameTheOperand) {
  Tensor a({3}, DType::f32), b({2}, DType::f32);
  const auto expect = [&](const std::string& text, auto change) {
    AdamWStep op;
    op.weight = op.m = op.v = a;
    op.gradient = a;
    change(op);
    expect_error<ArgumentError>("adamw_step: " + text, [&] { run(op, default_stream()); });
  };
  expect("gradient: expected [3], got [2]", [&](auto& op) { op.gradient = b; });
  expect("squares: expected a tensor, got none", [](auto& op) { op.max_norm = 1; });
  expect("beta1: expected 0 to below 1, got 1", [](auto& op) { op.beta1 = 1; });
  expect("loss_scale: expected above 0, got 0", [](auto& op) { op.loss_scale = 0; });
  expect("step: expected 1 to 1099511627776, got 0", [](auto& op) { op.step = 0; });
}

}  // namespace
}  // namespace mamba::testing
