// The pieces of proximal policy optimisation, as operations on buffers like those of
// <mamba/ops.hpp>: operands by name, run(op, stream), nothing hidden.
#pragma once

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>

namespace mamba_rl {

// Generalised advantage estimation (Schulman et al. 2016), from the last step to the first:
//   delta[t]     = reward[t] + gamma v[t + 1] - value[t]     v[t + 1] = 0 where the episode ended
//   advantage[t] = delta[t] + gamma lambda advantage[t + 1]  (and that with it)
//   return[t]    = advantage[t] + value[t]
// v after the last step is `last_values`.
struct Advantages {
  mamba::ConstTensorView rewards;      // [batch, time] f32
  mamba::ConstTensorView values;       // [batch, time] f32
  mamba::ConstTensorView ends;         // [batch, time] i32
  mamba::ConstTensorView last_values;  // [batch] f32
  mamba::TensorView advantages;        // [batch, time] f32
  mamba::TensorView returns;           // [batch, time] f32
  float gamma = 0.99f;
  float lambda = 0.95f;
};

// Where decisions != 0: advantage = (advantage - mean) / (deviation + epsilon), both over these
// steps alone, sums in f64. Everywhere else zero.
struct NormaliseAdvantages {
  mamba::ConstTensorView decisions;  // [batch, time] i32
  mamba::TensorView advantages;      // [batch, time] f32, read and written
  float epsilon = 1e-8f;
};

// Schulman et al. 2017 over n decisions, with ratio = exp(log_prob - old_log_prob):
//   loss = mean( -min(ratio A, clip(ratio, 1 - c, 1 + c) A)
//                + value_weight (value - return)^2 / 2 - entropy_weight entropy )
// where the mean divides by `counted`. Gradients are those of the loss.
struct PpoLoss {
  mamba::ConstTensorView log_prob, entropy;  // [n] f32: of the policy as it is
  mamba::ConstTensorView values;             // [n, 1] f32: the same
  mamba::ConstTensorView old_log_prob;       // [n] f32
  mamba::ConstTensorView advantages;         // [n] f32
  mamba::ConstTensorView returns;            // [n] f32
  mamba::TensorView dlog_prob, dentropy;     // [n] f32
  mamba::TensorView dvalues;                 // [n, 1] f32
  // [5] f32, added to: sums over the n of the policy's part of the loss, (value - return)^2 / 2,
  // entropy, (ratio - 1) - log(ratio) (Schulman's estimate of the divergence), and whether clipped.
  mamba::TensorView sums;
  float clip = 0.2f;
  float value_weight = 0.5f;
  float entropy_weight = 0.05f;
  std::int64_t counted = 1;
};

// y += x.
struct Add {
  mamba::ConstTensorView x;  // [batch, time, width] f32
  mamba::TensorView y;       // the same
};

void run(const Advantages& op, mamba::Stream& stream);
void run(const NormaliseAdvantages& op, mamba::Stream& stream);
void run(const PpoLoss& op, mamba::Stream& stream);
void run(const Add& op, mamba::Stream& stream);

}  // namespace mamba_rl
