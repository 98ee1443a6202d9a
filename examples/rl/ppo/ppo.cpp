#include "rl/ppo/ppo.hpp"

#include <mamba/check.hpp>

#include <cmath>

#include "rl/cuda.hpp"
#include "rl/ppo/ppo_scalar.hpp"

namespace mamba_rl {

namespace {

using mamba::DType;
using mamba::Shape;
using mamba::check::is;

}  // namespace

void run(const Advantages& op, mamba::Stream& stream) {
  const char* where = "advantages";
  mamba::check::rank(where, "rewards", op.rewards, 2);
  const Shape shape = op.rewards.shape();
  const mamba::Device device = stream.device();
  is(where, "rewards", op.rewards, shape, DType::f32, device);
  is(where, "values", op.values, shape, DType::f32, device);
  is(where, "ends", op.ends, shape, DType::i32, device);
  is(where, "last_values", op.last_values, {shape[0]}, DType::f32, device);
  is(where, "advantages", op.advantages, shape, DType::f32, device);
  is(where, "returns", op.returns, shape, DType::f32, device);
  if (device.is_cuda()) return cuda::run(op, stream);
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    const float* rewards = op.rewards.data<float>() + b * op.rewards.row_pitch();
    const float* values = op.values.data<float>() + b * op.values.row_pitch();
    const auto* ends = op.ends.data<std::int32_t>() + b * op.ends.row_pitch();
    float* advantages = op.advantages.data<float>() + b * op.advantages.row_pitch();
    float* returns = op.returns.data<float>() + b * op.returns.row_pitch();
    float next_value = op.last_values.data<float>()[b];
    float next_advantage = 0;
    for (std::int64_t t = shape[1]; t-- > 0;) {
      next_advantage = advantage(rewards[t], values[t], ends[t] != 0, next_value, next_advantage,
                                 op.gamma, op.lambda);
      next_value = values[t];
      advantages[t] = next_advantage;
      returns[t] = next_advantage + next_value;
    }
  }
}

void run(const NormaliseAdvantages& op, mamba::Stream& stream) {
  const char* where = "normalise_advantages";
  mamba::check::rank(where, "decisions", op.decisions, 2);
  const Shape shape = op.decisions.shape();
  is(where, "decisions", op.decisions, shape, DType::i32, stream.device());
  is(where, "advantages", op.advantages, shape, DType::f32, stream.device());
  if (stream.device().is_cuda()) return cuda::run(op, stream);
  const auto each = [&](const auto& f) {
    for (std::int64_t b = 0; b < shape[0]; ++b) {
      const auto* decisions = op.decisions.data<std::int32_t>() + b * op.decisions.row_pitch();
      float* advantages = op.advantages.data<float>() + b * op.advantages.row_pitch();
      for (std::int64_t t = 0; t < shape[1]; ++t) f(decisions[t] != 0, advantages[t]);
    }
  };
  double count = 0, sum = 0, squares = 0;
  each([&](bool decides, float value) {
    if (!decides) return;
    count += 1;
    sum += value;
  });
  const double mean = count > 0 ? sum / count : 0;
  each([&](bool decides, float value) {
    if (decides) squares += (value - mean) * (value - mean);
  });
  const double scale = 1 / (std::sqrt(count > 0 ? squares / count : 0) + double{op.epsilon});
  each([&](bool decides, float& value) {
    value = decides ? static_cast<float>((value - mean) * scale) : 0.0f;
  });
}

void run(const PpoLoss& op, mamba::Stream& stream) {
  const char* where = "ppo_loss";
  mamba::check::rank(where, "log_prob", op.log_prob, 1);
  const Shape shape = op.log_prob.shape();
  const Shape column{shape[0], 1};
  const mamba::Device device = stream.device();
  is(where, "log_prob", op.log_prob, shape, DType::f32, device);
  is(where, "entropy", op.entropy, shape, DType::f32, device);
  is(where, "values", op.values, column, DType::f32, device);
  is(where, "old_log_prob", op.old_log_prob, shape, DType::f32, device);
  is(where, "advantages", op.advantages, shape, DType::f32, device);
  is(where, "returns", op.returns, shape, DType::f32, device);
  is(where, "dlog_prob", op.dlog_prob, shape, DType::f32, device);
  is(where, "dentropy", op.dentropy, shape, DType::f32, device);
  is(where, "dvalues", op.dvalues, column, DType::f32, device);
  is(where, "sums", op.sums, {5}, DType::f32, device);
  mamba::check::range(where, "counted", op.counted, 1, std::int64_t{1} << 40);
  if (device.is_cuda()) return cuda::run(op, stream);
  const float scale = 1 / static_cast<float>(op.counted);
  double policy = 0, value = 0, entropy = 0, divergence = 0, clipped = 0;
  for (std::int64_t i = 0; i < shape[0]; ++i) {
    const PpoTerm term =
        ppo_term(op.log_prob.data<float>()[i], op.old_log_prob.data<float>()[i],
                 op.advantages.data<float>()[i], op.values.data<float>()[i * op.values.row_pitch()],
                 op.returns.data<float>()[i], op.clip, op.value_weight);
    op.dlog_prob.data<float>()[i] = scale * term.dlog_prob;
    op.dentropy.data<float>()[i] = -scale * op.entropy_weight;
    op.dvalues.data<float>()[i * op.dvalues.row_pitch()] = scale * term.dvalue;
    policy += term.policy;
    value += term.value;
    entropy += op.entropy.data<float>()[i];
    divergence += term.divergence;
    clipped += term.clipped;
  }
  float* sums = op.sums.data<float>();
  const double terms[] = {policy, value, entropy, divergence, clipped};
  for (int i = 0; i < 5; ++i) sums[i] += static_cast<float>(terms[i]);
}

void run(const Add& op, mamba::Stream& stream) {
  mamba::check::rank("add", "y", op.y, 3);
  is("add", "x", op.x, op.y.shape(), DType::f32, stream.device());
  is("add", "y", op.y, op.y.shape(), DType::f32, stream.device());
  if (stream.device().is_cuda()) return cuda::run(op, stream);
  for (std::int64_t b = 0; b < op.y.dim(0); ++b) {
    for (std::int64_t t = 0; t < op.y.dim(1); ++t) {
      const float* x = op.x.data<float>() + b * op.x.row_pitch() + t * op.x.step_pitch();
      float* y = op.y.data<float>() + b * op.y.row_pitch() + t * op.y.step_pitch();
      for (std::int64_t c = 0; c < op.y.dim(2); ++c) y[c] += x[c];
    }
  }
}

}  // namespace mamba_rl
