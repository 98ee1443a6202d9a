#include "rl/gru/gru.hpp"

#include <mamba/check.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>
#include <mamba/ops.hpp>

#include <algorithm>
#include <functional>
#include <thread>
#include <vector>

#include "rl/cuda.hpp"
#include "rl/gru/gru_scalar.hpp"

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

// One step of one row: h becomes the next one.
void step(const GruSequence& op, std::int64_t b, std::int64_t t, const float* g, float* h) {
  const std::int64_t hidden = op.weight.dim(1);
  const float* i = at<float>(op.inputs, b, t);
  float* before = op.slopes ? at<float>(op.before, b, t) : nullptr;
  float* slopes = op.slopes ? at<float>(op.slopes, b, t) : nullptr;
  for (std::int64_t c = 0; c < hidden; ++c) {
    const GruUnit unit =
        gru_unit(i[c] + g[c], i[hidden + c] + g[hidden + c], i[2 * hidden + c], g[2 * hidden + c]);
    if (slopes != nullptr) {
      before[c] = h[c];
      const GruSlopes s = unit.slopes(h[c]);
      slopes[c] = s.i_r;
      slopes[hidden + c] = s.i_z;
      slopes[2 * hidden + c] = s.i_n;
      slopes[3 * hidden + c] = s.g_n;
      slopes[4 * hidden + c] = s.h;
    }
    h[c] = unit.next(h[c]);
  }
  std::copy_n(h, hidden, at<float>(op.y, b, t));
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
      step(op, b, t, at<float>(recurrence.y, b, 0), at<float>(h, b, 0));
    }
  }
  if (op.final_state) mamba::copy(h, op.final_state, stream);
}

// One step of one row: from the gradient of h after it those of the gates, of which three are left
// in g for the product with W, and that of h before it, but for that product.
void step_back(const GruSequenceGrad& op, std::int64_t b, std::int64_t t, float* g, float* dh) {
  const std::int64_t hidden = op.weight.dim(1);
  const float *dy = at<float>(op.dy, b, t), *slopes = at<float>(op.slopes, b, t);
  float* dgates = at<float>(op.dgates, b, t);
  for (std::int64_t c = 0; c < hidden; ++c) {
    const float d = dh[c] + dy[c];
    for (std::int64_t gate = 0; gate < 4; ++gate) {
      dgates[gate * hidden + c] = d * slopes[gate * hidden + c];
    }
    dh[c] = d * slopes[4 * hidden + c];
  }
  std::copy_n(dgates, 2 * hidden, g);
  std::copy_n(dgates + 3 * hidden, hidden, g + 2 * hidden);
}

// From the last step to the first; dgates are also summed over time.
void backward(const GruSequenceGrad& op, const TensorView& sums, Stream& stream) {
  const std::int64_t batch = op.dy.dim(0), time = op.dy.dim(1), hidden = op.dy.dim(2);
  Scratch scratch(stream);
  const TensorView dh = scratch.take({batch, hidden}, DType::f32);
  if (op.dfinal_state) {
    mamba::copy(op.dfinal_state, dh, stream);
  } else {
    mamba::zero(dh, stream);
  }
  const TensorView g = scratch.take({batch, 3 * hidden}, DType::f32);
  Matmul recurrence;  // dh += g W
  recurrence.x = g;
  recurrence.weight = op.weight;
  recurrence.transpose_weight = true;
  recurrence.accumulate = true;
  recurrence.y = dh;
  for (std::int64_t t = time; t-- > 0;) {
    for (std::int64_t b = 0; b < batch; ++b) {
      step_back(op, b, t, at<float>(g, b, 0), at<float>(dh, b, 0));
    }
    run(recurrence, stream);
    for (std::int64_t b = 0; b < batch; ++b) {
      if (begins(op.reset, b, t)) std::fill_n(at<float>(dh, b, 0), hidden, 0.0f);
    }
  }
  if (op.dinitial_state) mamba::copy(dh, op.dinitial_state, stream);
  for (std::int64_t b = 0; b < batch; ++b) {
    mamba::SumRows sum;
    sum.x = op.dgates.rows(b, 1);
    sum.y = sums.rows(b, 1).reshape({4 * hidden});
    run(sum, stream);
  }
}

void backward_in_shares(const GruSequenceGrad& op, const TensorView& sums, Stream& stream) {
  each_share(op.dy.dim(0), op.dy.dim(1), stream,
             [&](std::int64_t first, std::int64_t count, Stream& own) {
               GruSequenceGrad share = op;
               if (op.reset) share.reset = op.reset.rows(first, count);
               share.slopes = op.slopes.rows(first, count);
               share.dy = op.dy.rows(first, count);
               if (op.dfinal_state) share.dfinal_state = op.dfinal_state.rows(first, count);
               if (op.dinitial_state) share.dinitial_state = op.dinitial_state.rows(first, count);
               share.dgates = op.dgates.rows(first, count);
               backward(share, sums.rows(first, count), own);
             });
}

// Two gates of W h + b share their gradients with the inputs, the third has its own: `of` says what
// the two parts of a weight or bias are, from dgates or sums of them.
template <class F>
void both_parts(std::int64_t hidden, const F& of) {
  of(0, 0, 2 * hidden);
  of(3 * hidden, 2 * hidden, hidden);
}

void weight_gradient(const GruSequenceGrad& op, Stream& stream) {
  both_parts(op.weight.dim(1), [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    mamba::LinearGrad part;
    part.x = op.before;
    part.dy = op.dgates.columns(from, count);
    part.dweight = op.dweight.rows(to, count);
    part.accumulate = op.accumulate;
    run(part, stream);
  });
}

void bias_gradients(const GruSequenceGrad& op, const TensorView& sums, Stream& stream) {
  const auto sum = [&](std::int64_t from, std::int64_t count, const TensorView& to) {
    mamba::SumRows rows;
    rows.x = sums.columns(from, count);
    rows.y = to;
    rows.accumulate = op.accumulate;
    run(rows, stream);
  };
  const std::int64_t hidden = op.weight.dim(1);
  both_parts(hidden, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    sum(from, count, op.dbias.rows(to, count));
  });
  if (op.dinput_bias) sum(0, 3 * hidden, op.dinput_bias);
}

}  // namespace

void run(const GruSequence& op, Stream& stream) {
  const char* where = "gru_sequence";
  const mamba::Device device = stream.device();
  mamba::check::rank(where, "inputs", op.inputs, 3);
  mamba::check::rank(where, "weight", op.weight, 2);
  const std::int64_t batch = op.inputs.dim(0), hidden = op.weight.dim(1);
  const Shape sequence{batch, op.inputs.dim(1), hidden};
  is(where, "inputs", op.inputs, sequence.with(2, 3 * hidden), DType::f32, device);
  is(where, "weight", op.weight, {3 * hidden, hidden}, DType::f32, device);
  is(where, "bias", op.bias, {3 * hidden}, DType::f32, device);
  is(where, "initial_state", op.initial_state, {batch, hidden}, DType::f32, device);
  if (op.final_state) {
    is(where, "final_state", op.final_state, {batch, hidden}, DType::f32, device);
  }
  if (op.reset) is(where, "reset", op.reset, {batch, sequence[1]}, DType::i32, device);
  is(where, "y", op.y, sequence, DType::f32, device);
  if (op.before || op.slopes) {
    is(where, "before", op.before, sequence, DType::f32, device);
    is(where, "slopes", op.slopes, sequence.with(2, 5 * hidden), DType::f32, device);
  }
  if (device.is_cuda()) return cuda::run(op, stream);
  each_share(batch, sequence[1], stream, [&](std::int64_t first, std::int64_t count, Stream& own) {
    GruSequence share = op;
    share.inputs = op.inputs.rows(first, count);
    share.initial_state = op.initial_state.rows(first, count);
    if (op.final_state) share.final_state = op.final_state.rows(first, count);
    if (op.reset) share.reset = op.reset.rows(first, count);
    share.y = op.y.rows(first, count);
    if (op.before) share.before = op.before.rows(first, count);
    if (op.slopes) share.slopes = op.slopes.rows(first, count);
    forward(share, own);
  });
}

void run(const GruSequenceGrad& op, Stream& stream) {
  const char* where = "gru_sequence_grad";
  const mamba::Device device = stream.device();
  mamba::check::rank(where, "dy", op.dy, 3);
  const Shape& sequence = op.dy.shape();
  const std::int64_t batch = sequence[0], hidden = sequence[2];
  is(where, "weight", op.weight, {3 * hidden, hidden}, DType::f32, device);
  if (op.reset) is(where, "reset", op.reset, {batch, sequence[1]}, DType::i32, device);
  is(where, "before", op.before, sequence, DType::f32, device);
  is(where, "slopes", op.slopes, sequence.with(2, 5 * hidden), DType::f32, device);
  is(where, "dy", op.dy, sequence, DType::f32, device);
  for (const ConstTensorView& state : {op.dfinal_state, ConstTensorView(op.dinitial_state)}) {
    if (state) is(where, "dstate", state, {batch, hidden}, DType::f32, device);
  }
  is(where, "dgates", op.dgates, sequence.with(2, 4 * hidden), DType::f32, device);
  is(where, "dweight", op.dweight, op.weight.shape(), DType::f32, device);
  is(where, "dbias", op.dbias, {3 * hidden}, DType::f32, device);
  if (op.dinput_bias) is(where, "dinput_bias", op.dinput_bias, {3 * hidden}, DType::f32, device);
  Scratch scratch(stream);
  const TensorView sums = scratch.take({batch, 4 * hidden}, DType::f32);
  device.is_cuda() ? cuda::backward(op, sums, stream) : backward_in_shares(op, sums, stream);
  weight_gradient(op, stream);
  bias_gradients(op, sums, stream);
}

}  // namespace mamba_rl
