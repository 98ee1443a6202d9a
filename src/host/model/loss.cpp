#include <mamba/loss.hpp>

#include <mamba/check.hpp>
#include <mamba/grad_ops.hpp>

namespace mamba {

void TokenLoss::run(ConstTensorView logits, ConstTensorView targets,
                    const TokenLossOptions& options, Stream& stream) {
  check::rank("TokenLoss::run", "targets", targets, 2);
  check::range("TokenLoss::run", "counted", options.counted, 1, std::int64_t{1} << 40);
  if (losses_.shape() != targets.shape() || losses_.device() != stream.device()) {
    sum_ = Tensor({1}, DType::f32, stream.device());
    losses_ = Tensor(targets.shape(), DType::f32, stream.device());  // last: what is asked for
  }
  CrossEntropy loss;
  loss.logits = logits;
  loss.targets = targets;
  loss.loss = losses_;
  loss.dlogits = options.dlogits;
  loss.scale = options.loss_scale / static_cast<float>(options.counted);
  mamba::run(loss, stream);
  SumRows sum;
  sum.x = losses_.view().reshape({targets.count(), 1});
  sum.y = sum_;
  mamba::run(sum, stream);
  counted_ = options.counted;
}

float TokenLoss::mean(Stream& stream) const {
  check::present("TokenLoss::mean", "run", sum_);
  stream.synchronize();
  return sum_.to(Device::cpu()).data<float>()[0] / static_cast<float>(counted_);
}

}  // namespace mamba
