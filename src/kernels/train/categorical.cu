// Categorical and CategoricalGrad: rows of a few actions, many of them to a block.
#include "detail/stream_access.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/train/softmax_row.cuh"

namespace mamba::cuda {

namespace {

// What both kernels read; one row has `lanes` threads.
struct Distribution {
  const float* logits;
  std::int64_t pitch, rows, count;  // count of actions
  const std::int32_t* actions;      // may be nullptr
  int lanes;
  int* bad_action;

  template <class Op>
  Distribution(const Op& op, Stream& stream)
      : logits(op.logits.template data<float>()),
        pitch(op.logits.row_pitch()),
        rows(op.logits.dim(0)),
        count(op.logits.dim(1)),
        actions(op.actions ? op.actions.template data<std::int32_t>() : nullptr),
        lanes(RowBlocks(count, 1, 2).lanes),
        bad_action(StreamAccess::flag(stream, BadValue::action)) {}

  RowBlocks spread() const { return RowBlocks(count, 1, 2); }
};

// One thread's view of its row.
struct Row {
  std::int64_t row;
  int lane;
  bool inside;  // threads outside take part in the sums
  const float* logits;
  std::int64_t action = 0;
  bool bad = false;  // the action is out of range
  SoftmaxSum softmax;
  float entropy;

  __device__ explicit Row(const Distribution& d)
      : row(std::int64_t{blockIdx.x} * (blockDim.x / d.lanes) +
            static_cast<int>(threadIdx.x) / d.lanes),
        lane(static_cast<int>(threadIdx.x) % d.lanes),
        inside(row < d.rows),
        logits(d.logits + (inside ? row * d.pitch : 0)) {
    const std::int64_t end = inside ? d.count : 0;
    if (inside && d.actions != nullptr) {
      action = d.actions[row];
      bad = action < 0 || action >= d.count;
      if (bad && lane == 0) *d.bad_action = 1;
    }
    for (std::int64_t v = lane; v < end; v += d.lanes) {
      const float value[1] = {logits[v]};
      softmax.add(value);
    }
    softmax = combine_over_row(softmax, d.lanes);
    float total[1] = {};
    for (std::int64_t v = lane; v < end; v += d.lanes) {
      const float log_p = softmax.log_p(logits[v]);
      const float p = expf(log_p);
      if (p != 0) total[0] = fmaf(-p, log_p, total[0]);  // an impossible action says nothing
    }
    sum_over_row(total, d.lanes);
    entropy = total[0];
  }
  __device__ float log_p(std::int64_t v) const { return softmax.log_p(logits[v]); }
};

__global__ void __launch_bounds__(row_block_largest)
    categorical_kernel(const Distribution d, float* log_prob, float* entropy, float* log_probs,
                       std::int64_t log_probs_pitch) {
  const Row r(d);
  if (r.inside && r.lane == 0) {
    if (log_prob != nullptr) log_prob[r.row] = r.bad ? nanf("") : r.log_p(r.action);
    if (entropy != nullptr) entropy[r.row] = r.entropy;
  }
  if (log_probs == nullptr) return;
  __syncthreads();  // they may be where the logits are, of which one thread has read another's
  if (!r.inside) return;
  for (std::int64_t v = r.lane; v < d.count; v += d.lanes) {
    log_probs[r.row * log_probs_pitch + v] = r.log_p(v);
  }
}

__global__ void __launch_bounds__(row_block_largest)
    categorical_grad_kernel(const Distribution d, const float* dlog_prob, const float* dentropy,
                            float* dlogits, std::int64_t dlogits_pitch) {
  const Row r(d);
  if (!r.inside) return;
  const float to_action = dlog_prob != nullptr ? dlog_prob[r.row] : 0;
  const float to_entropy = dentropy != nullptr ? dentropy[r.row] : 0;
  for (std::int64_t v = r.lane; v < d.count; v += d.lanes) {
    const float log_p = r.log_p(v);
    const float p = expf(log_p);
    float gradient = 0;
    if (dlog_prob != nullptr) {
      gradient = r.bad ? nanf("") : to_action * ((v == r.action ? 1.0f : 0.0f) - p);
    }
    if (p != 0) gradient = fmaf(-to_entropy * p, log_p + r.entropy, gradient);
    dlogits[r.row * dlogits_pitch + v] = gradient;
  }
}

float* floats(const TensorView& view) { return view ? view.data<float>() : nullptr; }
const float* floats(const ConstTensorView& view) { return view ? view.data<float>() : nullptr; }

}  // namespace

void run(const Categorical& op, Stream& stream) {
  const OnDevice current(stream.device(), "categorical");
  Distribution d(op, stream);
  if (!op.log_prob) d.actions = nullptr;
  const RowBlocks spread = d.spread();
  const auto blocks = static_cast<unsigned>(divide_up(d.rows, spread.rows()));
  launch(categorical_kernel, blocks, spread.threads, 0, stream, "categorical", d,
         floats(op.log_prob), floats(op.entropy), floats(op.log_probs),
         op.log_probs ? op.log_probs.row_pitch() : 0);
}

void run(const CategoricalGrad& op, Stream& stream) {
  const OnDevice current(stream.device(), "categorical_grad");
  Distribution d(op, stream);
  if (!op.dlog_prob) d.actions = nullptr;
  const RowBlocks spread = d.spread();
  const auto blocks = static_cast<unsigned>(divide_up(d.rows, spread.rows()));
  launch(categorical_grad_kernel, blocks, spread.threads, 0, stream, "categorical_grad", d,
         floats(op.dlog_prob), floats(op.dentropy), floats(op.dlogits), op.dlogits.row_pitch());
}

}  // namespace mamba::cuda
