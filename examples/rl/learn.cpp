// Trainer's one step of the optimiser: a minibatch of environments through the agent, the loss
// where it decides, and back.
#include <mamba/train_ops.hpp>

#include "ppo.hpp"
#include "trainer.hpp"

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

struct Trainer::Piece {
  const Chunk* chunk = nullptr;
  AgentTape* tape = nullptr;
  TensorView hidden, dhidden;  // [rows, time, width]
  // The steps that decide, counted through the chunk's elements and through this piece's.
  TensorView from, to;
};

TensorView Trainer::upload(const std::vector<std::int32_t>& list, mamba::Scratch& scratch) {
  const mamba::Shape shape{static_cast<std::int64_t>(list.size())};
  uploads_.push_back(mamba::Tensor::from(list, shape));
  const TensorView there = scratch.take(shape, DType::i32);
  mamba::copy(uploads_.back(), there, stream_);
  return there;
}

std::vector<Trainer::Piece> Trainer::cut(const std::vector<std::int32_t>& rows,
                                         mamba::Scratch& scratch) {
  const auto length = static_cast<std::int32_t>(options_.chunk_len);
  const mamba::Shape shape{static_cast<std::int64_t>(rows.size()), length, agent_.width()};
  std::vector<Piece> pieces(chunks_.size());
  for (std::size_t k = 0; k < pieces.size(); ++k) {
    std::vector<std::int32_t> from, to;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (const std::int32_t t : decided_[k][static_cast<std::size_t>(rows[i])]) {
        from.push_back(rows[i] * length + t);
        to.push_back(static_cast<std::int32_t>(i) * length + t);
      }
    }
    pieces[k] = {&chunks_[k],
                 &tapes_[k],
                 scratch.take(shape, DType::f32),
                 scratch.take(shape, DType::f32),
                 upload(from, scratch),
                 upload(to, scratch)};
  }
  return pieces;
}

void Trainer::learn(const std::vector<std::int32_t>& rows, TensorView sums) {
  mamba::Scratch scratch(stream_);
  const std::vector<Piece> pieces = cut(rows, scratch);
  std::int64_t counted = 0;
  for (const Piece& piece : pieces) counted += piece.from.count();
  if (counted == 0) return;  // nothing in these environments depended on the policy
  const TensorView rows_there = upload(rows, scratch);
  mamba::StackState state = chunks_.front().initial.gather(rows_there, stream_);
  for (std::size_t k = 0; k < pieces.size(); ++k) {
    if (k > 0 && !options_.across_chunks) {
      state = chunks_[k].initial.gather(rows_there, stream_);
    }
    remember(pieces[k], rows_there, state);
    decide(pieces[k], counted, sums, k > 0);
  }
  state.reset(stream_);  // from here on its gradient: that of the last state is zero
  for (std::size_t k = pieces.size(); k-- > 0;) {
    mamba::BackwardOptions options;
    options.accumulate = k + 1 < pieces.size();
    agent_.remember_backward(*pieces[k].tape, pieces[k].dhidden,
                             options_.across_chunks ? &state : nullptr, stream_, options);
  }
  optimizer_.step(options_.ppo.rate, stream_);
}

void Trainer::remember(const Piece& piece, ConstTensorView rows, mamba::StackState& state) {
  const Chunk& chunk = *piece.chunk;
  const std::int64_t count = rows.dim(0), time = chunk.time();
  mamba::Scratch scratch(stream_);
  const TensorView observations =
      scratch.take({count, time, agent_.config().observation}, DType::f32);
  const TensorView reset = scratch.take({count, time}, DType::i32);
  copy_rows(chunk.observations, rows, observations, {}, stream_);
  copy_rows(chunk.begins, rows, reset, {}, stream_);
  agent_.remember(observations, state, reset, piece.hidden, piece.tape, stream_);
}

// The loss at the steps that decide, and its gradient on the way back to `dhidden`.
void Trainer::decide(const Piece& piece, std::int64_t counted, TensorView sums, bool accumulate) {
  const Chunk& chunk = *piece.chunk;
  const std::int64_t n = piece.from.count(), width = agent_.width();
  const std::int64_t actions = agent_.config().actions;
  mamba::Scratch scratch(stream_);
  const auto numbers = [&] { return scratch.take({n}, DType::f32); };
  const auto picked = [&](const mamba::Tensor& from) {
    const TensorView to = scratch.take({n}, from.dtype());
    copy_rows(flat(from), piece.from, to, {}, stream_);
    return to;
  };
  const mamba::Shape elements{piece.hidden.dim(0) * piece.hidden.dim(1), width};
  const TensorView hidden = scratch.take({n, width}, DType::f32);
  copy_rows(piece.hidden.reshape(elements), piece.to, hidden, {}, stream_);
  const TensorView out = scratch.take({n, actions + 1}, DType::f32);
  const TensorView dout = scratch.take({n, actions + 1}, DType::f32);
  agent_.decide(hidden, out, stream_);

  mamba::Categorical policy;
  policy.logits = out.columns(0, actions);
  policy.actions = picked(chunk.actions);
  policy.log_prob = numbers();
  policy.entropy = numbers();
  run(policy, stream_);
  PpoLoss loss;
  loss.log_prob = policy.log_prob;
  loss.entropy = policy.entropy;
  loss.values = out.columns(actions, 1);
  loss.old_log_prob = picked(chunk.log_probs);
  loss.advantages = picked(chunk.advantages);
  loss.returns = picked(chunk.returns);
  loss.dlog_prob = numbers();
  loss.dentropy = numbers();
  loss.dvalues = dout.columns(actions, 1);
  loss.sums = sums;
  loss.clip = options_.ppo.clip;
  loss.value_weight = options_.ppo.value_weight;
  loss.entropy_weight = options_.ppo.entropy_weight;
  loss.counted = counted;
  run(loss, stream_);
  mamba::CategoricalGrad grad;
  grad.logits = policy.logits;
  grad.actions = policy.actions;
  grad.dlog_prob = loss.dlog_prob;
  grad.dentropy = loss.dentropy;
  grad.dlogits = dout.columns(0, actions);
  run(grad, stream_);

  const TensorView dhidden = scratch.take({n, width}, DType::f32);
  mamba::BackwardOptions options;
  options.accumulate = accumulate;
  agent_.decide_backward(hidden, dout, dhidden, stream_, options);
  mamba::zero(piece.dhidden, stream_);
  copy_rows(dhidden, {}, piece.dhidden.reshape(elements), piece.to, stream_);
}

}  // namespace mamba_rl
