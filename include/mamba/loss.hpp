// The mean cross-entropy of next tokens, and its gradient.
#pragma once

#include <cstdint>

#include <mamba/stream.hpp>
#include <mamba/tensor.hpp>
#include <mamba/train_ops.hpp>

namespace mamba {

// Keeps its memory from call to call.
class TokenLoss {
 public:
  // logits [batch, time, vocab] f32; targets [batch, time] i32, dense, a negative one is not
  // counted; dlogits [batch, time, vocab] of the model's dtype, or absent: the gradient of the
  // mean. `counted` is how many targets count, which the caller knows; at least 1.
  void run(ConstTensorView logits, ConstTensorView targets, std::int64_t counted,
           TensorView dlogits, Stream& stream);

  // Of the last run, in nats a token; divided by log(2), bits. Waits for the stream.
  float mean(Stream& stream) const;

 private:
  Tensor losses_;  // [batch, time]
  Tensor sum_;     // [1]
  std::int64_t counted_ = 1;
};

}  // namespace mamba
