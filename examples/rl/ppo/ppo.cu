// The pieces of ppo.hpp. Every sum has one order, whatever runs beside it.
#include "rl/ppo/ppo.hpp"

#include <algorithm>

#include "rl/cuda.cuh"
#include "rl/ppo/ppo_scalar.hpp"

namespace mamba_rl::cuda {

namespace {

constexpr int warp = 32;
constexpr int threads = 1024;
constexpr unsigned all_lanes = 0xffffffffu;

// A warp walks a row from its end. 32 steps are read at once; then every lane takes them one by
// one, in the host's order, and keeps the result of its own.
__global__ void __launch_bounds__(warp)
    advantages_kernel(const Rows<const float> rewards, const Rows<const float> values,
                      const Rows<const std::int32_t> ends, const float* last_values,
                      std::int64_t time, float gamma, float lambda, const Rows<float> advantages,
                      const Rows<float> returns) {
  const std::int64_t b = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  float next_value = last_values[b];
  float next_advantage = 0;
  for (std::int64_t end = time; end > 0; end -= warp) {
    const std::int64_t t = end - 1 - lane;
    const bool inside = t >= 0;
    const float reward = inside ? rewards.at(b)[t] : 0.0f;
    const float value = inside ? values.at(b)[t] : 0.0f;
    const int ended = inside ? ends.at(b)[t] : 0;
    float own = 0;
    for (int k = 0; k < warp; ++k) {
      const float v = __shfl_sync(all_lanes, value, k);
      next_advantage =
          advantage(__shfl_sync(all_lanes, reward, k), v, __shfl_sync(all_lanes, ended, k) != 0,
                    next_value, next_advantage, gamma, lambda);
      next_value = v;
      own = k == lane ? next_advantage : own;
    }
    if (!inside) continue;
    advantages.at(b)[t] = own;
    returns.at(b)[t] = own + value;
  }
}

// The sum over a whole block of `threads`, known to all of its threads.
__device__ double block_sum(double value) {
  __shared__ double parts[threads];
  __syncthreads();  // the parts of a sum before are still read
  parts[threadIdx.x] = value;
  for (int half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  __syncthreads();
  return parts[0];
}

// One block, so that the sums need nothing but it. f(decides, advantage) for this thread's steps.
template <class F>
__device__ void each_step(const Rows<const std::int32_t>& decisions, const Rows<float>& advantages,
                          std::int64_t batch, std::int64_t time, const F& f) {
  for (std::int64_t i = threadIdx.x; i < batch * time; i += threads) {
    f(decisions.at(i / time)[i % time] != 0, advantages.at(i / time)[i % time]);
  }
}

__global__ void __launch_bounds__(threads)
    normalise_kernel(const Rows<const std::int32_t> decisions, std::int64_t batch,
                     std::int64_t time, const Rows<float> advantages, double epsilon) {
  double count = 0, sum = 0, squares = 0;
  each_step(decisions, advantages, batch, time, [&](bool decides, float value) {
    count += decides ? 1 : 0;
    sum += decides ? value : 0;
  });
  count = block_sum(count);
  sum = block_sum(sum);
  const double mean = count > 0 ? sum / count : 0;
  each_step(decisions, advantages, batch, time, [&](bool decides, float value) {
    if (decides) squares += (value - mean) * (value - mean);
  });
  squares = block_sum(squares);
  const double scale = 1 / (sqrt(count > 0 ? squares / count : 0) + epsilon);
  each_step(decisions, advantages, batch, time, [&](bool decides, float& value) {
    value = decides ? static_cast<float>((value - mean) * scale) : 0.0f;
  });
}

struct LossOperands {
  const float *log_prob, *entropy, *old_log_prob, *advantages, *returns;
  Rows<const float> values;
  float *dlog_prob, *dentropy, *sums;
  Rows<float> dvalues;
  std::int64_t n;
  float clip, value_weight, entropy_weight, scale;
};

__global__ void __launch_bounds__(threads) loss_kernel(const LossOperands op) {
  double policy = 0, value = 0, entropy = 0, divergence = 0, clipped = 0;
  for (std::int64_t i = threadIdx.x; i < op.n; i += threads) {
    const PpoTerm term = ppo_term(op.log_prob[i], op.old_log_prob[i], op.advantages[i],
                                  *op.values.at(i), op.returns[i], op.clip, op.value_weight);
    op.dlog_prob[i] = op.scale * term.dlog_prob;
    op.dentropy[i] = -op.scale * op.entropy_weight;
    *op.dvalues.at(i) = op.scale * term.dvalue;
    policy += term.policy;
    value += term.value;
    entropy += op.entropy[i];
    divergence += term.divergence;
    clipped += term.clipped;
  }
  const double terms[] = {policy, value, entropy, divergence, clipped};
#pragma unroll
  for (int i = 0; i < 5; ++i) {
    const double sum = block_sum(terms[i]);
    if (threadIdx.x == 0) op.sums[i] += static_cast<float>(sum);
  }
}

// A block takes the same elements of every gridDim.y-th row.
__global__ void __launch_bounds__(threads)
    add_kernel(const Rows<const float> x, const Rows<float> y, std::int64_t batch,
               std::int64_t time, std::int64_t width) {
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const std::int64_t t = i / width, c = i - t * width;
  if (t >= time) return;
  for (std::int64_t b = blockIdx.y; b < batch; b += gridDim.y) y.at(b, t)[c] += x.at(b, t)[c];
}

}  // namespace

void run(const Advantages& op, mamba::Stream& stream) {
  if (op.rewards.count() == 0) return;
  const OnDevice current(stream.device(), "advantages");
  const auto rows = static_cast<unsigned>(op.rewards.dim(0));
  advantages_kernel<<<rows, warp, 0, handle(stream)>>>(
      Rows<const float>(op.rewards), Rows<const float>(op.values),
      Rows<const std::int32_t>(op.ends), op.last_values.data<float>(), op.rewards.dim(1), op.gamma,
      op.lambda, Rows<float>(op.advantages), Rows<float>(op.returns));
  check(cudaGetLastError(), "advantages");
}

void run(const NormaliseAdvantages& op, mamba::Stream& stream) {
  if (op.advantages.count() == 0) return;
  const OnDevice current(stream.device(), "normalise_advantages");
  normalise_kernel<<<1, threads, 0, handle(stream)>>>(Rows<const std::int32_t>(op.decisions),
                                                      op.decisions.dim(0), op.decisions.dim(1),
                                                      Rows<float>(op.advantages), op.epsilon);
  check(cudaGetLastError(), "normalise_advantages");
}

void run(const PpoLoss& op, mamba::Stream& stream) {
  const OnDevice current(stream.device(), "ppo_loss");
  LossOperands operands;
  operands.log_prob = op.log_prob.data<float>();
  operands.entropy = op.entropy.data<float>();
  operands.old_log_prob = op.old_log_prob.data<float>();
  operands.advantages = op.advantages.data<float>();
  operands.returns = op.returns.data<float>();
  operands.values = Rows<const float>(op.values);
  operands.dlog_prob = op.dlog_prob.data<float>();
  operands.dentropy = op.dentropy.data<float>();
  operands.sums = op.sums.data<float>();
  operands.dvalues = Rows<float>(op.dvalues);
  operands.n = op.log_prob.dim(0);
  operands.clip = op.clip;
  operands.value_weight = op.value_weight;
  operands.entropy_weight = op.entropy_weight;
  operands.scale = 1 / static_cast<float>(op.counted);
  loss_kernel<<<1, threads, 0, handle(stream)>>>(operands);
  check(cudaGetLastError(), "ppo_loss");
}

void run(const Add& op, mamba::Stream& stream) {
  if (op.y.count() == 0) return;
  const OnDevice current(stream.device(), "add");
  constexpr std::int64_t most_across = 8;  // so that a place found serves several rows
  const dim3 blocks(blocks_for(op.y.dim(1) * op.y.dim(2), threads),
                    static_cast<unsigned>(std::min(op.y.dim(0), most_across)));
  add_kernel<<<blocks, threads, 0, handle(stream)>>>(Rows<const float>(op.x), Rows<float>(op.y),
                                                     op.y.dim(0), op.y.dim(1), op.y.dim(2));
  check(cudaGetLastError(), "add");
}

}  // namespace mamba_rl::cuda
