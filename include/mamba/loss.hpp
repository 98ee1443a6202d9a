// The mean cross-entropy of next tokens, and its gradient.
#pragma once

#include <cstdint>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>
#include <mamba/train_ops.hpp>

namespace MAMBA_EXPORT mamba {

struct TokenLossOptions {
  // How many targets count, which the caller knows; at least 1. For a part of a batch it is the
  // count of the whole batch: then the gradients and means of the parts add up to those of the
  // batch.
  std::int64_t counted = 0;
  // [batch, time, vocab] of the model's dtype, or absent: the gradient of the mean, times
  // loss_scale.
  TensorView dlogits = {};
  float loss_scale = 1;  // see LossScale
};

// Keeps its memory from call to call.
class TokenLoss {
 public:
  // logits [batch, time, vocab] f32; targets [batch, time] i32, dense, a negative one is not
  // counted.
  void run(ConstTensorView logits, ConstTensorView targets, const TokenLossOptions& options,
           Stream& stream);

  // Of the last run, in nats a token, not scaled; divided by log(2), bits. Waits for the stream.
  float mean(Stream& stream) const;

 private:
  Tensor losses_;  // [batch, time]
  Tensor sum_;     // [1]
  std::int64_t counted_ = 1;
};

}  // namespace mamba
