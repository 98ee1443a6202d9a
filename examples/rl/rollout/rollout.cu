// A whole chunk of a rollout in one kernel: a block per environment steps it, its agent's encoder,
// memory, norm and heads, and chooses the actions. Nothing waits for the host, or for another
// environment.
#include "rl/rollout/rollout.hpp"

#include <algorithm>
#include <mutex>
#include <vector>

#include "rl/agent/gru_controller.hpp"
#include "rl/agent/mamba_controller.hpp"
#include "rl/cuda.cuh"
#include "rl/env/environments_step.cuh"
#include "rl/rollout/cores.cuh"

namespace mamba_rl::cuda {

namespace {

constexpr int most_seen = 19;               // numbers of an observation: those of 16 bits
constexpr std::int64_t most_actions = 256;  // whose heads fit in shared memory

struct RolloutOperands {
  EnvironmentConfig environment;
  std::int32_t first;  // the index of row 0's environment
  EnvironmentState* states;
  StepRows step;  // of the chunk's first step
  Rows<float> values;
  std::int64_t steps;
  bool greedy;
  const float *encoder, *encoder_bias;  // the bias may be nullptr
  const float *norm_weight, *norm_bias, *heads, *heads_bias;
  float norm_epsilon;
};

// The agent's heads and encoder are read from shared memory: there are few rows, or few columns.
template <int width, int threads>
struct Ends {
  float *encoder, *heads, *logits;
  int seen, outputs;

  static constexpr std::size_t bytes(std::int64_t seen, std::int64_t outputs) {
    return sizeof(float) * static_cast<std::size_t>(width * (seen + outputs) + outputs);
  }
  __device__ Ends(const RolloutOperands& op, float* shared)
      : encoder(shared),
        heads(shared + width * observation_size(op.environment)),
        logits(heads + width * (action_count(op.environment) + 1)),
        seen(observation_size(op.environment)),
        outputs(action_count(op.environment) + 1) {
    for (int i = threadIdx.x; i < width * seen; i += threads) encoder[i] = op.encoder[i];
    for (int i = threadIdx.x; i < width * outputs; i += threads) heads[i] = op.heads[i];
  }

  // Of a unit, eight threads to each.
  __device__ float encode(const float* observation) const {
    const float* row = encoder + static_cast<int>(threadIdx.x) / 8 * seen;
    float sum = 0;
    for (int j = threadIdx.x % 8; j < seen; j += 8) sum = fmaf(row[j], observation[j], sum);
    return sum_over<8>(sum);
  }
  // A warp to an output.
  __device__ void decide(const float* normed, const float* bias) const {
    const int lane = threadIdx.x % warp;
    for (int r = threadIdx.x / warp; r < outputs; r += threads / warp) {
      float sum = 0;
      for (int j = lane; j < width; j += warp) sum = fmaf(heads[r * width + j], normed[j], sum);
      sum = sum_over<warp>(sum);
      if (lane == 0) logits[r] = sum + bias[r];
    }
  }
};

// One block an SM is enough: without the 1 ptxas keeps registers free for more and spills.
template <class Core>
__global__ void __launch_bounds__(Core::threads, 1)
    rollout_kernel(const __grid_constant__ RolloutOperands op,
                   const __grid_constant__ typename Core::Operands memory) {
  constexpr int width = Core::width, threads = Core::threads;
  extern __shared__ float dynamic[];
  __shared__ typename Core::Shared core_shared;
  __shared__ float observation[most_seen];
  __shared__ alignas(16) float encoded[width];
  __shared__ float normed[width];
  __shared__ float parts[2][threads / warp];
  __shared__ bool begins;
  __shared__ EnvironmentState state;
  const std::int64_t b = blockIdx.x;
  const int unit = static_cast<int>(threadIdx.x) / 8;
  const bool writes = threadIdx.x % 8 == 0;
  const auto index = op.first + static_cast<std::int32_t>(b);
  const Ends<width, threads> ends(op, dynamic);
  Core core(memory, b, core_shared);
  const float encoder_bias = op.encoder_bias != nullptr ? op.encoder_bias[unit] : 0;
  const float norm_weight = op.norm_weight[unit], norm_bias = op.norm_bias[unit];
  const auto look = [&](std::int64_t t) {
    mamba_rl::observe(op.environment, index, state, observation);
    op.step.begin(op.environment, state, b, t);
    begins = state.step == 0;
  };
  if (threadIdx.x == 0) {
    state = op.states[b];
    look(0);
  }
  __syncthreads();
  for (std::int64_t t = 0; t < op.steps; ++t) {
    if (threadIdx.x < ends.seen) {
      op.step.observations.at(b, t)[threadIdx.x] = observation[threadIdx.x];
    }
    const float code = ends.encode(observation) + encoder_bias;
    if (writes) encoded[unit] = code;
    core.begin(begins);
    __syncthreads();
    const float hidden = core.step(encoded);
    const float scaled = block_normalise<threads, 8>(hidden, op.norm_epsilon, parts);
    if (writes) normed[unit] = fmaf(scaled, norm_weight, norm_bias);
    __syncthreads();
    ends.decide(normed, op.heads_bias);
    __syncthreads();
    if (threadIdx.x == 0) {
      *op.values.at(b, t) = ends.logits[ends.outputs - 1];
      op.step.act(op.environment, index, state, ends.logits, op.greedy, b, t);
      if (t + 1 < op.steps) look(t + 1);
    }
    __syncthreads();
  }
  core.save(memory, b);
  if (threadIdx.x == 0) op.states[b] = state;
}

// What a launch may ask for is a property of the kernel that all threads share: set once on a
// device, to the most that any agent needs.
template <class Core>
void allow_shared() {
  constexpr std::size_t most = Ends<Core::width, Core::threads>::bytes(most_seen, most_actions + 1);
  static_assert(most + sizeof(typename Core::Shared) + 4096 <= 99 << 10, "what any GPU gives");
  static std::mutex alone;
  static std::vector<int> allowed;  // devices
  int device = 0;
  check(cudaGetDevice(&device), "rollout");
  const std::lock_guard<std::mutex> lock(alone);
  if (std::find(allowed.begin(), allowed.end(), device) != allowed.end()) return;
  check(cudaFuncSetAttribute(rollout_kernel<Core>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(most)),
        "rollout");
  allowed.push_back(device);
}

template <class Core>
void launch(const RolloutOperands& op, const typename Core::Operands& memory, std::int64_t batch,
            cudaStream_t stream) {
  const auto kernel = rollout_kernel<Core>;
  const std::size_t shared = Ends<Core::width, Core::threads>::bytes(
      observation_size(op.environment), action_count(op.environment) + 1);
  allow_shared<Core>();
  kernel<<<static_cast<unsigned>(batch), Core::threads, shared, stream>>>(op, memory);
  check(cudaGetLastError(), "rollout");
}

template <template <int> class Core, class Operands>
void launch_for(std::int64_t width, const RolloutOperands& op, const Operands& memory,
                std::int64_t batch, cudaStream_t stream) {
  if (width == 64) return launch<Core<64>>(op, memory, batch, stream);
  if (width == 32) return launch<Core<32>>(op, memory, batch, stream);
  launch<Core<16>>(op, memory, batch, stream);
}

const float* floats(const mamba::Tensor& tensor) { return tensor ? tensor.data<float>() : nullptr; }

GruOperands operands_of(const GruController& controller, mamba::StackState& state) {
  const GruController::Weights& w = controller.weights();
  return {floats(w.weight_ih), floats(w.weight_hh), floats(w.bias_ih), floats(w.bias_hh),
          state.layers[0].ssm.data<float>()};
}

MambaOperands operands_of(const MambaController& controller, mamba::StackState& state) {
  const mamba::Layer& layer = controller.layers()[0];
  const mamba::LayerWeights& w = layer.weights();
  const mamba::LayerConfig& c = layer.config();
  MambaOperands operands;
  operands.in_proj = floats(w.in_proj);
  operands.conv_weight = floats(w.conv_weight);
  operands.x_proj = floats(w.x_proj);
  operands.dt_proj = floats(w.dt_proj);
  operands.dt_bias = floats(w.dt_bias);
  operands.A_log = floats(w.A_log);
  operands.D = floats(w.D);
  operands.out_proj = floats(w.out_proj);
  operands.conv_bias = floats(w.conv_bias);
  operands.norm_weight = floats(w.gated_norm_weight);
  operands.norm_bias = floats(w.gated_norm_bias);
  operands.norm_dt_b_c = c.norm_dt_b_c;
  operands.norm_dt_b_c_epsilon = c.norm_dt_b_c_epsilon;
  operands.gated_norm_epsilon = c.gated_norm_epsilon;
  operands.conv = state.layers[0].conv.data<float>();
  operands.ssm = state.layers[0].ssm.data<float>();
  return operands;
}

}  // namespace

bool can_collect(const AgentConfig& config) {
  const std::int64_t width = config.controller.width;
  const bool one_layer = config.controller.kind == "gru" || config.controller.layers == 1;
  const bool there = config.controller.kind != "mamba2";  // which has no core here
  return there && one_layer && (width == 16 || width == 32 || width == 64) &&
         config.observation <= most_seen && config.actions <= most_actions;
}

void collect(const Agent& agent, Environments& environments, mamba::StackState& state,
             const StepViews& first, const mamba::TensorView& values, std::int64_t steps,
             bool greedy, mamba::Stream& stream) {
  const OnDevice current(stream.device(), "rollout");
  const Agent::Weights& w = agent.weights();
  const RolloutOperands op{environments.config(),
                           environments.first(),
                           static_cast<EnvironmentState*>(environments.states().view().data()),
                           StepRows(first),
                           Rows<float>(values),
                           steps,
                           greedy,
                           floats(w.encoder),
                           floats(w.encoder_bias),
                           floats(w.norm),
                           floats(w.norm_bias),
                           floats(w.heads),
                           floats(w.heads_bias),
                           Agent::norm_epsilon};
  const std::int64_t width = agent.width(), batch = environments.count();
  if (const auto* gru = dynamic_cast<const GruController*>(&agent.controller())) {
    launch_for<GruCore>(width, op, operands_of(*gru, state), batch, handle(stream));
  } else {
    const auto& mamba = dynamic_cast<const MambaController&>(agent.controller());
    launch_for<MambaCore>(width, op, operands_of(mamba, state), batch, handle(stream));
  }
}

}  // namespace mamba_rl::cuda
