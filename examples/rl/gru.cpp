#include "gru.hpp"

#include <mamba/check.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>
#include <mamba/ops.hpp>

#include <algorithm>
#include <functional>
#include <thread>
#include <vector>

#include "cuda.hpp"
#include "gru_scalar.hpp"

namespace mamba_rl {

namespace {

using mamba::ConstTensorView;
using mamba::DType;
using mamba::Matmul;
using mamba::Scratch;
using mamba::Shape;
using mamba::Stream;
using mamba::TensorView;
using mamba::check::is;

// What forward and backward have in common.
template <class Op>
void check_operands(const char* where, const Op& op, const Stream& stream) {
  mamba::check::rank(where, "inputs", op.inputs, 3);
  mamba::check::rank(where, "weight", op.weight, 2);
  const std::int64_t hidden = op.weight.dim(1);
  const Shape sequence{op.inputs.dim(0), op.inputs.dim(1), 3 * hidden};
  const mamba::Device device = stream.device();
  is(where, "inputs", op.inputs, sequence, DType::f32, device);
  is(where, "weight", op.weight, {3 * hidden, hidden}, DType::f32, device);
  is(where, "bias", op.bias, {3 * hidden}, DType::f32, device);
  is(where, "initial_state", op.initial_state, {sequence[0], hidden}, DType::f32, device);
  is(where, "y", op.y, sequence.with(2, hidden), DType::f32, device);
  if (op.reset) is(where, "reset", op.reset, {sequence[0], sequence[1]}, DType::i32, device);
}

// f(first row, count, stream) for shares of the batch, side by side: a row's sequence needs
// nothing of another's. `steps` says whether there is enough to do for starting threads.
void each_share(std::int64_t batch, std::int64_t steps, Stream& stream,
                const std::function<void(std::int64_t, std::int64_t, Stream&)>& f) {
  constexpr std::int64_t worth_a_thread = 16;  // steps: about a hundred microseconds of work
  const std::int64_t shares =
      steps < worth_a_thread ? 1 : std::min<std::int64_t>(stream.threads(), batch);
  if (shares <= 1) return f(0, batch, stream);
  std::vector<std::thread> threads;
  for (std::int64_t share = 0; share < shares; ++share) {
    const std::int64_t first = batch * share / shares;
    const std::int64_t end = batch * (share + 1) / shares;
    threads.emplace_back([first, end, &f] {
      Stream own(mamba::Device::cpu(), 1);
      f(first, end - first, own);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

template <class T>
T* at(const TensorView& view, std::int64_t b, std::int64_t t) {
  return view.data<T>() + b * view.row_pitch() + t * view.step_pitch();
}
template <class T>
const T* at(const ConstTensorView& view, std::int64_t b, std::int64_t t) {
  return view.data<T>() + b * view.row_pitch() + t * view.step_pitch();
}

bool begins(const ConstTensorView& reset, std::int64_t b, std::int64_t t) {
  return reset && *at<std::int32_t>(reset, b, t) != 0;
}

void forward(const GruSequence& op, Stream& stream) {
  const std::int64_t batch = op.inputs.dim(0), time = op.inputs.dim(1), hidden = op.weight.dim(1);
  Scratch scratch(stream);
  const TensorView h = scratch.take({batch, hidden}, DType::f32);
  Matmul recurrence;
  recurrence.x = h;
  recurrence.weight = op.weight;
  recurrence.bias = op.bias;
  recurrence.y = scratch.take({batch, 3 * hidden}, DType::f32);
  mamba::copy(op.initial_state, h, stream);
  for (std::int64_t t = 0; t < time; ++t) {
    for (std::int64_t b = 0; b < batch; ++b) {
      if (begins(op.reset, b, t)) std::fill_n(at<float>(h, b, 0), hidden, 0.0f);
    }
    run(recurrence, stream);
    for (std::int64_t b = 0; b < batch; ++b) {
      const float* i = at<float>(op.inputs, b, t);
      const float* g = at<float>(recurrence.y, b, 0);
      float* y = at<float>(op.y, b, t);
      float* state = at<float>(h, b, 0);
      for (std::int64_t c = 0; c < hidden; ++c) {
        const GruUnit unit(i[c], i[hidden + c], i[2 * hidden + c], g[c], g[hidden + c],
                           g[2 * hidden + c]);
        y[c] = state[c] = unit.next(state[c]);
      }
    }
  }
  if (op.final_state) mamba::copy(h, op.final_state, stream);
}

// h before every step.
void states_before(const GruSequenceGrad& op, const TensorView& before) {
  const std::int64_t batch = op.y.dim(0), time = op.y.dim(1), hidden = op.y.dim(2);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t t = 0; t < time; ++t) {
      float* to = at<float>(before, b, t);
      if (begins(op.reset, b, t)) {
        std::fill_n(to, hidden, 0.0f);
      } else {
        std::copy_n(t == 0 ? at<float>(op.initial_state, b, 0) : at<float>(op.y, b, t - 1), hidden,
                    to);
      }
    }
  }
}

// From the last step to the first: dinputs, and in place of g = W h + b its gradient.
void backward(const GruSequenceGrad& op, const ConstTensorView& before, const TensorView& g,
              Stream& stream) {
  const std::int64_t batch = op.y.dim(0), time = op.y.dim(1), hidden = op.y.dim(2);
  Scratch scratch(stream);
  const TensorView dh = scratch.take({batch, 1, hidden}, DType::f32);
  if (op.dfinal_state) {
    mamba::copy(op.dfinal_state, dh.reshape({batch, hidden}), stream);
  } else {
    mamba::zero(dh, stream);
  }
  Matmul recurrence;  // dh += dg W
  recurrence.weight = op.weight;
  recurrence.transpose_weight = true;
  recurrence.accumulate = true;
  recurrence.y = dh;
  for (std::int64_t t = time; t-- > 0;) {
    for (std::int64_t b = 0; b < batch; ++b) {
      const float* i = at<float>(op.inputs, b, t);
      const float* dy = at<float>(op.dy, b, t);
      const float* h = at<float>(before, b, t);
      float* gates = at<float>(g, b, t);
      float* di = at<float>(op.dinputs, b, t);
      float* carried = at<float>(dh, b, 0);
      for (std::int64_t c = 0; c < hidden; ++c) {
        const float g_n = gates[2 * hidden + c];
        const GruUnit unit(i[c], i[hidden + c], i[2 * hidden + c], gates[c], gates[hidden + c],
                           g_n);
        const GruUnitGrad grad(unit, h[c], g_n, carried[c] + dy[c]);
        di[c] = gates[c] = grad.di_r;
        di[hidden + c] = gates[hidden + c] = grad.di_z;
        di[2 * hidden + c] = grad.di_n;
        gates[2 * hidden + c] = grad.dg_n;
        carried[c] = grad.dh;
      }
    }
    recurrence.x = g.steps(t, 1);
    run(recurrence, stream);
    for (std::int64_t b = 0; b < batch; ++b) {
      if (begins(op.reset, b, t)) std::fill_n(at<float>(dh, b, 0), hidden, 0.0f);
    }
  }
  if (op.dinitial_state) mamba::copy(dh.reshape({batch, hidden}), op.dinitial_state, stream);
}

void backward_in_shares(const GruSequenceGrad& op, const TensorView& before, const TensorView& g,
                        Stream& stream) {
  each_share(op.inputs.dim(0), op.inputs.dim(1), stream,
             [&](std::int64_t first, std::int64_t count, Stream& own) {
               GruSequenceGrad share = op;
               share.inputs = op.inputs.rows(first, count);
               if (op.reset) share.reset = op.reset.rows(first, count);
               share.y = op.y.rows(first, count);
               share.dy = op.dy.rows(first, count);
               if (op.dfinal_state) share.dfinal_state = op.dfinal_state.rows(first, count);
               if (op.dinitial_state) share.dinitial_state = op.dinitial_state.rows(first, count);
               share.dinputs = op.dinputs.rows(first, count);
               backward(share, before.rows(first, count), g.rows(first, count), own);
             });
}

}  // namespace

void run(const GruSequence& op, Stream& stream) {
  check_operands("gru_sequence", op, stream);
  if (op.final_state) {
    is("gru_sequence", "final_state", op.final_state, op.initial_state.shape(), DType::f32,
       stream.device());
  }
  if (stream.device().is_cuda()) return cuda::run(op, stream);
  each_share(op.inputs.dim(0), op.inputs.dim(1), stream,
             [&](std::int64_t first, std::int64_t count, Stream& own) {
               GruSequence share = op;
               share.inputs = op.inputs.rows(first, count);
               share.initial_state = op.initial_state.rows(first, count);
               if (op.final_state) share.final_state = op.final_state.rows(first, count);
               if (op.reset) share.reset = op.reset.rows(first, count);
               share.y = op.y.rows(first, count);
               forward(share, own);
             });
}

void run(const GruSequenceGrad& op, Stream& stream) {
  const char* where = "gru_sequence_grad";
  check_operands(where, op, stream);
  const mamba::Device device = stream.device();
  is(where, "dy", op.dy, op.y.shape(), DType::f32, device);
  is(where, "dinputs", op.dinputs, op.inputs.shape(), DType::f32, device);
  is(where, "dweight", op.dweight, op.weight.shape(), DType::f32, device);
  is(where, "dbias", op.dbias, op.bias.shape(), DType::f32, device);
  for (const ConstTensorView& state : {op.dfinal_state, ConstTensorView(op.dinitial_state)}) {
    if (state) is(where, "dstate", state, op.initial_state.shape(), DType::f32, device);
  }
  Scratch scratch(stream);
  const TensorView before = scratch.take(op.y.shape(), DType::f32);
  const TensorView g = scratch.take(op.inputs.shape(), DType::f32);
  device.is_cuda() ? cuda::states_before(op, before, stream) : states_before(op, before);
  Matmul recurrence;
  recurrence.x = before;
  recurrence.weight = op.weight;
  recurrence.bias = op.bias;
  recurrence.y = g;
  run(recurrence, stream);
  device.is_cuda() ? cuda::backward(op, before, g, stream)
                   : backward_in_shares(op, before, g, stream);
  mamba::LinearGrad weights;
  weights.x = before;
  weights.dy = g;
  weights.dweight = op.dweight;
  weights.dbias = op.dbias;
  weights.accumulate = op.accumulate;
  run(weights, stream);
}

}  // namespace mamba_rl
