// run(op, stream) of the training operations: every operand is checked here, for every device.
#include <mamba/train_ops.hpp>

#include <cmath>

#include <mamba/detail/fused_ops.hpp>

#include "host/ops/dispatch.hpp"
#include "host/ops/operands.hpp"

namespace mamba {

void run(const CrossEntropy& op, Stream& stream) {
  const Operands operands("cross_entropy", stream);
  check::present("cross_entropy", "logits", op.logits);
  operands.is_storage("logits", op.logits, op.logits.shape());
  if (op.logits.rank() < 2) {
    operands.fail("logits", "2 or 3 dimensions", op.logits.shape().to_string());
  }
  operands.at_most_rank_3("logits", op.logits);
  const std::int64_t vocab = op.logits.shape().back();
  check::range("cross_entropy", "vocab", vocab, 1, std::int64_t{1} << 30);
  const Shape positions =
      op.logits.rank() == 2 ? Shape{op.logits.dim(0)} : Shape{op.logits.dim(0), op.logits.dim(1)};
  operands.is("targets", op.targets, positions, DType::i32);
  operands.is("loss", op.loss, positions, DType::f32);
  operands.dense("targets", op.targets);
  operands.dense("loss", op.loss);
  if (op.dlogits) operands.is_storage("dlogits", op.dlogits, op.logits.shape());
  operands.same_or_apart("dlogits", op.dlogits, "logits", op.logits);
  if (!std::isfinite(op.scale)) operands.fail("scale", "a number", fmt::format("{}", op.scale));
  if (op.loss.count() > 0) dispatch(op, stream);
}

void run(const Activate& op, Stream& stream) {
  const Operands operands("activate", stream);
  check::present("activate", "x", op.x);
  operands.is_storage("x", op.x, op.x.shape());
  operands.is("y", op.y, op.x.shape(), op.x.dtype());
  operands.same_or_apart("y", op.y, "x", op.x);
  operands.at_most_rank_3("x", op.x);
  if (op.x.count() > 0) dispatch(op, stream);
}

void run(const ActivateGrad& op, Stream& stream) {
  const Operands operands("activate_grad", stream);
  check::present("activate_grad", "x", op.x);
  operands.is_storage("x", op.x, op.x.shape());
  operands.is("dy", op.dy, op.x.shape(), op.x.dtype());
  operands.is("dx", op.dx, op.x.shape(), op.x.dtype());
  operands.same_or_apart("dx", op.dx, "x", op.x);
  operands.same_or_apart("dx", op.dx, "dy", op.dy);
  operands.at_most_rank_3("x", op.x);
  if (op.x.count() > 0) dispatch(op, stream);
}

namespace {

// logits, and actions where something is said of them.
template <class Op>
void check_distribution(const Operands& operands, const Op& op, bool needs_actions) {
  operands.rank("logits", op.logits, 2);
  operands.is("logits", op.logits, op.logits.shape(), DType::f32);
  check::range(operands.where(), "actions", op.logits.dim(1), 1, std::int64_t{1} << 30);
  if (needs_actions) operands.is("actions", op.actions, {op.logits.dim(0)}, DType::i32);
}

}  // namespace

void run(const Categorical& op, Stream& stream) {
  const Operands operands("categorical", stream);
  check_distribution(operands, op, static_cast<bool>(op.log_prob));
  const Shape rows{op.logits.dim(0)};
  operands.optional("log_prob", op.log_prob, rows, DType::f32);
  operands.optional("entropy", op.entropy, rows, DType::f32);
  operands.optional("log_probs", op.log_probs, op.logits.shape(), DType::f32);
  operands.same_or_apart("log_probs", op.log_probs, "logits", op.logits);
  if (op.logits.count() > 0) dispatch(op, stream);
}

void run(const CategoricalGrad& op, Stream& stream) {
  const Operands operands("categorical_grad", stream);
  check_distribution(operands, op, static_cast<bool>(op.dlog_prob));
  const Shape rows{op.logits.dim(0)};
  operands.optional("dlog_prob", op.dlog_prob, rows, DType::f32);
  operands.optional("dentropy", op.dentropy, rows, DType::f32);
  operands.is("dlogits", op.dlogits, op.logits.shape(), DType::f32);
  operands.same_or_apart("dlogits", op.dlogits, "logits", op.logits);
  if (op.logits.count() > 0) dispatch(op, stream);
}

namespace {

void check_operands(const SumSquares& op, Stream& stream) {
  const Operands operands("sum_squares", stream);
  check::present("sum_squares", "x", op.x);
  operands.is("x", op.x, op.x.shape(), DType::f32);
  operands.dense("x", op.x);
  operands.is("y", op.y, {1}, DType::f32);
}

void check_operands(const AdamWStep& op, Stream& stream) {
  const Operands operands("adamw_step", stream);
  check::present("adamw_step", "weight", op.weight);
  const Shape& shape = op.weight.shape();
  operands.is("weight", op.weight, shape, DType::f32);
  if (op.stored) operands.is_storage("stored", op.stored, shape);
  operands.is("gradient", op.gradient, shape, DType::f32);
  operands.is("m", op.m, shape, DType::f32);
  operands.is("v", op.v, shape, DType::f32);
  operands.dense("weight", op.weight);
  operands.dense("stored", op.stored);
  operands.dense("gradient", op.gradient);
  operands.dense("m", op.m);
  operands.dense("v", op.v);
  operands.finite("max_norm", op.max_norm, 0);
  if (op.max_norm > 0 || op.squares) operands.is("squares", op.squares, {1}, DType::f32);
  operands.finite("loss_scale", op.loss_scale, 0);
  if (op.loss_scale == 0) operands.fail("loss_scale", "above 0", "0");
  operands.finite("learning_rate", op.learning_rate, 0);
  for (const auto& [name, beta] : {std::pair("beta1", op.beta1), {"beta2", op.beta2}}) {
    if (!(beta >= 0 && beta < 1)) operands.fail(name, "0 to below 1", fmt::format("{}", beta));
  }
  operands.finite("epsilon", op.epsilon, 0);
  operands.finite("weight_decay", op.weight_decay, 0);
  check::range("adamw_step", "step", op.step, 1, std::int64_t{1} << 40);
}

template <class Op>
void check_and_run_all(const std::vector<Op>& ops, Stream& stream) {
  for (const Op& op : ops) check_operands(op, stream);
  if (ops.empty()) return;
  const detail::ProfilerRange range(name_of(ops.front()));
  if (stream.device().is_cuda()) return cuda::run_all(ops.data(), ops.size(), stream);
  for (const Op& op : ops) host::run(op, stream);
}

}  // namespace

void run(const SumSquares& op, Stream& stream) {
  check_operands(op, stream);
  dispatch(op, stream);
}

void run(const AdamWStep& op, Stream& stream) {
  check_operands(op, stream);
  if (op.weight.count() > 0) dispatch(op, stream);
}

namespace detail {

void run_all(const std::vector<SumSquares>& ops, Stream& stream) { check_and_run_all(ops, stream); }
void run_all(const std::vector<AdamWStep>& ops, Stream& stream) { check_and_run_all(ops, stream); }

}  // namespace detail
}  // namespace mamba
