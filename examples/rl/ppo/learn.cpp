// Trainer's one step of the optimiser: a minibatch of environments through the agent, the loss
// where it decides, and back.
#include <mamba/train_ops.hpp>

#include "rl/ppo/ppo.hpp"
#include "rl/ppo/trainer.hpp"

namespace mamba_rl {

namespace {

using mamba::ConstTensorView;
using mamba::DType;
using mamba::TensorView;

// to[to_rows[i]] = from[from_rows[i]]; either list may be absent.
void copy_rows(ConstTensorView from, ConstTensorView from_rows, TensorView to,
               ConstTensorView to_rows, mamba::Stream& stream) {
  mamba::CopyRows op;
  op.from = from;
  op.from_rows = from_rows;
  op.to = to;
  op.to_rows = to_rows;
  run(op, stream);
}

ConstTensorView flat(const mamba::Tensor& tensor) {
  return tensor.view().reshape({tensor.count()});
}

}  // namespace

struct Trainer::Minibatch {
  TensorView rows;             // [count] i32: environments
  TensorView hidden, dhidden;  // [count, time, width]
  // The steps that decide, counted through the elements of the rollout and of `hidden`.
  TensorView from, to;

  std::int64_t count() const { return hidden.dim(0); }
  // One chunk's part of [count, time, ...].
  template <class View>
  static View part(const View& view, std::int64_t k, std::int64_t length) {
    return view.rank() == 2 ? view.columns(k * length, length) : view.steps(k * length, length);
  }
};

TensorView Trainer::upload(const std::vector<std::int32_t>& list, mamba::Scratch& scratch) {
  const mamba::Shape shape{static_cast<std::int64_t>(list.size())};
  uploads_.push_back(mamba::Tensor::from(list, shape));
  const TensorView there = scratch.take(shape, DType::i32);
  mamba::copy(uploads_.back(), there, stream_);
  return there;
}

void Trainer::learn(const std::vector<std::int32_t>& rows, TensorView sums) {
  const auto time = static_cast<std::int32_t>(rollout_.time());
  std::vector<std::int32_t> from, to;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (const std::int32_t t : decided_[static_cast<std::size_t>(rows[i])]) {
      from.push_back(rows[i] * time + t);
      to.push_back(static_cast<std::int32_t>(i) * time + t);
    }
  }
  if (from.empty()) return;  // nothing in these environments depended on the policy
  mamba::Scratch scratch(stream_);
  const mamba::Shape shape{static_cast<std::int64_t>(rows.size()), time, agent_.width()};
  const Minibatch batch{upload(rows, scratch), scratch.take(shape, DType::f32),
                        scratch.take(shape, DType::f32), upload(from, scratch),
                        upload(to, scratch)};
  remember(batch);
  decide(batch, sums);
  remember_backward(batch);
  optimizer_.step(rate(), stream_);
}

void Trainer::remember(const Minibatch& batch) {
  const std::int64_t time = rollout_.time(), length = rollout_.length();
  mamba::Scratch scratch(stream_);
  const TensorView observations =
      scratch.take({batch.count(), time, agent_.config().observation}, DType::f32);
  const TensorView reset = scratch.take({batch.count(), time}, DType::i32);
  copy_rows(rollout_.observations, batch.rows, observations, {}, stream_);
  copy_rows(rollout_.begins, batch.rows, reset, {}, stream_);
  mamba::StackState state;
  for (std::size_t k = 0; k < tapes_.size(); ++k) {
    if (k == 0 || !options_.across_chunks) {
      state = rollout_.initial[k].gather(batch.rows, stream_);
    }
    const auto part = [&](const TensorView& whole) {
      return Minibatch::part(whole, static_cast<std::int64_t>(k), length);
    };
    agent_.remember(part(observations), state, part(reset), part(batch.hidden), &tapes_[k],
                    stream_);
  }
}

void Trainer::remember_backward(const Minibatch& batch) {
  mamba::StackState dstate;  // of the last state: zero
  if (options_.across_chunks) dstate = agent_.make_state(batch.count());
  for (std::size_t k = tapes_.size(); k-- > 0;) {
    mamba::BackwardOptions options;
    options.accumulate = k + 1 < tapes_.size();
    const TensorView dhidden =
        Minibatch::part(batch.dhidden, static_cast<std::int64_t>(k), rollout_.length());
    agent_.remember_backward(tapes_[k], dhidden, options_.across_chunks ? &dstate : nullptr,
                             stream_, options);
  }
}

// The loss at the steps that decide, and its gradient on the way back to `dhidden`.
void Trainer::decide(const Minibatch& batch, TensorView sums) {
  const std::int64_t n = batch.from.count(), width = agent_.width();
  const std::int64_t actions = agent_.config().actions;
  mamba::Scratch scratch(stream_);
  const auto numbers = [&] { return scratch.take({n}, DType::f32); };
  const auto picked = [&](const mamba::Tensor& from) {
    const TensorView to = scratch.take({n}, from.dtype());
    copy_rows(flat(from), batch.from, to, {}, stream_);
    return to;
  };
  const mamba::Shape elements{batch.count() * rollout_.time(), width};
  const TensorView hidden = scratch.take({n, width}, DType::f32);
  copy_rows(batch.hidden.reshape(elements), batch.to, hidden, {}, stream_);
  const TensorView out = scratch.take({n, actions + 1}, DType::f32);
  const TensorView dout = scratch.take({n, actions + 1}, DType::f32);
  agent_.decide(hidden, out, stream_);

  mamba::Categorical policy;
  policy.logits = out.columns(0, actions);
  policy.actions = picked(rollout_.actions);
  policy.log_prob = numbers();
  policy.entropy = numbers();
  run(policy, stream_);
  PpoLoss loss;
  loss.log_prob = policy.log_prob;
  loss.entropy = policy.entropy;
  loss.values = out.columns(actions, 1);
  loss.old_log_prob = picked(rollout_.log_probs);
  loss.advantages = picked(rollout_.advantages);
  loss.returns = picked(rollout_.returns);
  loss.dlog_prob = numbers();
  loss.dentropy = numbers();
  loss.dvalues = dout.columns(actions, 1);
  loss.sums = sums;
  loss.clip = options_.ppo.clip;
  loss.value_weight = options_.ppo.value_weight;
  loss.entropy_weight = options_.ppo.entropy_weight;
  loss.counted = n;
  run(loss, stream_);
  mamba::CategoricalGrad grad;
  grad.logits = policy.logits;
  grad.actions = policy.actions;
  grad.dlog_prob = loss.dlog_prob;
  grad.dentropy = loss.dentropy;
  grad.dlogits = dout.columns(0, actions);
  run(grad, stream_);

  const TensorView dhidden = scratch.take({n, width}, DType::f32);
  agent_.decide_backward(hidden, dout, dhidden, stream_);
  mamba::zero(batch.dhidden, stream_);
  copy_rows(dhidden, {}, batch.dhidden.reshape(elements), batch.to, stream_);
}

}  // namespace mamba_rl
