// A GRU over whole sequences: a block per row of the batch, its weights in registers where there is
// a kernel for the size, else read again every step.
//
// Four threads work on a unit, each with every fourth group of four of its weights, so that the
// state is read from shared memory in words of 16 bytes without conflicts, and the sums meet in
// shuffles. What a step needs of global memory is read four steps at a time, a step by each of the
// four, while the four before are computed. One barrier a step: the state alternates between two
// places.
#include "gru.hpp"

#include <mamba/check.hpp>

#include "cuda.cuh"
#include "gru_scalar.hpp"

namespace mamba_rl::cuda {

namespace {

constexpr int lanes = 4;          // of a unit
constexpr int any_threads = 256;  // of the kernels for any size
constexpr unsigned all_lanes = 0xffffffffu;

__device__ float from_lane(float value, int lane) {
  return __shfl_sync(all_lanes, value, lane, lanes);
}

__device__ float sum_over_lanes(float value) {
  value += __shfl_xor_sync(all_lanes, value, 1);
  return value + __shfl_xor_sync(all_lanes, value, 2);
}

struct Sequence {
  Rows<const float> inputs;
  const float *weight, *bias;
  Rows<const float> initial;
  Rows<float> final;  // may be absent
  Rows<const std::int32_t> reset;
  Rows<float> y;
  std::int64_t time;
  int hidden;

  __device__ bool begins(std::int64_t b, std::int64_t t) const {
    return reset.data != nullptr && *reset.at(b, t) != 0;
  }
};

// The projected inputs of a unit at one step.
struct Inputs {
  float r = 0, z = 0, n = 0;
  float keep = 1;  // 0: h becomes zero before the step

  Inputs() = default;
  __device__ Inputs(const Sequence& s, std::int64_t b, std::int64_t t, int unit) {
    if (t >= s.time) return;
    const float* from = s.inputs.at(b, t);
    r = from[unit];
    z = from[s.hidden + unit];
    n = from[2 * s.hidden + unit];
    keep = s.begins(b, t) ? 0.0f : 1.0f;
  }
};

template <int hidden>
__global__ void __launch_bounds__(lanes* hidden) gru_kernel(const Sequence s) {
  constexpr int vectors = hidden / (4 * lanes);  // of four weights, of one row and thread
  __shared__ float4 state[2][hidden / 4];
  const int unit = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t b = blockIdx.x;
  float4 weight[3][vectors];
  for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      weight[gate][v] = reinterpret_cast<const float4*>(
          s.weight + (std::int64_t{gate} * hidden + unit) * hidden)[v * lanes + lane];
    }
  }
  const float bias_r = s.bias[unit], bias_z = s.bias[hidden + unit];
  const float bias_n = s.bias[2 * hidden + unit];
  float h = *(s.initial.at(b) + unit);
  Inputs next(s, b, lane, unit);
  for (std::int64_t first = 0; first < s.time; first += lanes) {
    const Inputs now = next;
    next = Inputs(s, b, first + lanes + lane, unit);
#pragma unroll
    for (int k = 0; k < lanes; ++k) {
      if (first + k >= s.time) break;
      if (from_lane(now.keep, k) == 0) h = 0;
      float4* const place = state[k % 2];
      if (lane == 0) reinterpret_cast<float*>(place)[unit] = h;
      __syncthreads();
      float g[3] = {};
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const float4 x = place[v * lanes + lane];
#pragma unroll
        for (int gate = 0; gate < 3; ++gate) {
          const float4 w = weight[gate][v];
          g[gate] = fmaf(w.x, x.x, fmaf(w.y, x.y, fmaf(w.z, x.z, fmaf(w.w, x.w, g[gate]))));
        }
      }
      const GruUnit gates(from_lane(now.r, k), from_lane(now.z, k), from_lane(now.n, k),
                          sum_over_lanes(g[0]) + bias_r, sum_over_lanes(g[1]) + bias_z,
                          sum_over_lanes(g[2]) + bias_n);
      h = gates.next(h);
      if (lane == 0) s.y.at(b, first + k)[unit] = h;
    }
  }
  if (lane == 0 && s.final.data != nullptr) s.final.at(b)[unit] = h;
}

// Any size: a thread has every any_threads-th unit. [2][hidden] floats of shared memory.
__global__ void __launch_bounds__(any_threads) gru_any_kernel(const Sequence s) {
  extern __shared__ float states[];
  const int hidden = s.hidden;
  const std::int64_t b = blockIdx.x;
  for (int u = threadIdx.x; u < hidden; u += any_threads) states[u] = s.initial.at(b)[u];
  float *now = states, *next = states + hidden;
  for (std::int64_t t = 0; t < s.time; ++t) {
    __syncthreads();
    const float keep = s.begins(b, t) ? 0.0f : 1.0f;
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      float g[3];
      for (int gate = 0; gate < 3; ++gate) {
        const std::int64_t row = std::int64_t{gate} * hidden + u;
        g[gate] = 0;
        for (int j = 0; keep != 0 && j < hidden; ++j) {
          g[gate] = fmaf(s.weight[row * hidden + j], now[j], g[gate]);
        }
        g[gate] += s.bias[row];
      }
      const Inputs i(s, b, t, u);
      const GruUnit gates(i.r, i.z, i.n, g[0], g[1], g[2]);
      next[u] = s.y.at(b, t)[u] = gates.next(keep != 0 ? now[u] : 0.0f);
    }
    float* const before = now;
    now = next;
    next = before;
  }
  __syncthreads();
  if (s.final.data == nullptr) return;
  for (int u = threadIdx.x; u < hidden; u += any_threads) s.final.at(b)[u] = now[u];
}

struct Gradient {
  Rows<const float> inputs, before;
  const float* weight;
  Rows<const std::int32_t> reset;
  Rows<const float> dy;
  Rows<const float> dfinal;  // may be absent
  Rows<float> dinitial;      // may be absent
  Rows<float> g;             // W h + b of every step; becomes its gradient
  Rows<float> dinputs;
  std::int64_t time;
  int hidden;
};

// What a unit's gradients at one step are per gradient of its h, which is all that the walk needs:
// the gates are computed ahead of it.
struct Slopes {
  float r = 0, z = 0, n = 0, g = 0, h = 0;  // of i_r, i_z, i_n, g_n and of h on its direct way
  float dy = 0;
  float keep = 1;  // 0: nothing passes to the step before

  Slopes() = default;
  __device__ Slopes(const Gradient& s, std::int64_t b, std::int64_t t, int unit) {
    if (t < 0) return;
    const float *i = s.inputs.at(b, t), *products = s.g.at(b, t);
    const float g_n = products[2 * s.hidden + unit];
    const GruUnit gates(i[unit], i[s.hidden + unit], i[2 * s.hidden + unit], products[unit],
                        products[s.hidden + unit], g_n);
    const GruUnitGrad one(gates, s.before.at(b, t)[unit], g_n, 1.0f);
    r = one.di_r;
    z = one.di_z;
    n = one.di_n;
    g = one.dg_n;
    h = one.dh;
    dy = s.dy.at(b, t)[unit];
    keep = s.reset.data != nullptr && *s.reset.at(b, t) != 0 ? 0.0f : 1.0f;
  }
};

template <int hidden>
__global__ void __launch_bounds__(lanes* hidden) gru_grad_kernel(const Gradient s) {
  constexpr int vectors = 3 * hidden / (4 * lanes);
  __shared__ float4 gradients[2][3 * hidden / 4];
  const int unit = static_cast<int>(threadIdx.x) / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const std::int64_t b = blockIdx.x;
  float weight[vectors][4];  // of this unit's column
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      weight[v][i] = s.weight[std::int64_t{4 * (v * lanes + lane) + i} * hidden + unit];
    }
  }
  float dh = s.dfinal.data != nullptr ? s.dfinal.at(b)[unit] : 0.0f;
  const std::int64_t last = s.time - 1;
  Slopes next(s, b, last - lane, unit);
  for (std::int64_t first = last; first >= 0; first -= lanes) {
    const Slopes now = next;
    next = Slopes(s, b, first - lanes - lane, unit);
#pragma unroll
    for (int k = 0; k < lanes; ++k) {
      if (first - k < 0) break;
      const std::int64_t t = first - k;
      const float d = dh + from_lane(now.dy, k);
      const float d_r = d * from_lane(now.r, k), d_z = d * from_lane(now.z, k);
      const float d_n = d * from_lane(now.n, k), dg_n = d * from_lane(now.g, k);
      float4* const place = gradients[k % 2];
      if (lane < 3) {  // each of three lanes has one gate to write
        const float dg = lane == 0 ? d_r : lane == 1 ? d_z : dg_n;
        reinterpret_cast<float*>(place)[lane * hidden + unit] = dg;
        s.g.at(b, t)[lane * hidden + unit] = dg;
        s.dinputs.at(b, t)[lane * hidden + unit] = lane == 2 ? d_n : dg;
      }
      __syncthreads();
      float sums[4] = {};
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const float4 x = place[v * lanes + lane];
        sums[0] = fmaf(weight[v][0], x.x, sums[0]);
        sums[1] = fmaf(weight[v][1], x.y, sums[1]);
        sums[2] = fmaf(weight[v][2], x.z, sums[2]);
        sums[3] = fmaf(weight[v][3], x.w, sums[3]);
      }
      const float through = sum_over_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
      dh = from_lane(now.keep, k) != 0 ? fmaf(d, from_lane(now.h, k), through) : 0.0f;
    }
  }
  if (lane == 0 && s.dinitial.data != nullptr) s.dinitial.at(b)[unit] = dh;
}

// Any size: [hidden] gradients of the state, then [3 hidden] of the gates, in shared memory.
__global__ void __launch_bounds__(any_threads) gru_grad_any_kernel(const Gradient s) {
  extern __shared__ float carried[];
  const int hidden = s.hidden;
  float* const gates = carried + hidden;
  const std::int64_t b = blockIdx.x;
  for (int u = threadIdx.x; u < hidden; u += any_threads) {
    carried[u] = s.dfinal.data != nullptr ? s.dfinal.at(b)[u] : 0.0f;
  }
  for (std::int64_t t = s.time; t-- > 0;) {
    __syncthreads();
    float keep = 1;
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      const Slopes now(s, b, t, u);
      const float d = carried[u] + now.dy;
      const float dg[3] = {d * now.r, d * now.z, d * now.g};
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        const int place = gate * hidden + u;
        gates[place] = s.g.at(b, t)[place] = dg[gate];
        s.dinputs.at(b, t)[place] = gate == 2 ? d * now.n : dg[gate];
      }
      carried[u] = d * now.h;
      keep = now.keep;
    }
    __syncthreads();
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      float sum = carried[u];
      for (int i = 0; i < 3 * hidden; ++i) {
        sum = fmaf(s.weight[std::int64_t{i} * hidden + u], gates[i], sum);
      }
      carried[u] = keep != 0 ? sum : 0.0f;
    }
  }
  if (s.dinitial.data == nullptr) return;
  for (int u = threadIdx.x; u < hidden; u += any_threads) s.dinitial.at(b)[u] = carried[u];
}

// h before every step.
__global__ void __launch_bounds__(any_threads)
    states_before_kernel(const Rows<const float> initial, const Rows<const float> y,
                         const Rows<const std::int32_t> reset, std::int64_t time, int hidden,
                         std::int64_t count, const Rows<float> before) {
  const std::int64_t i = std::int64_t{blockIdx.x} * any_threads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t u = i % hidden, t = i / hidden % time, b = i / hidden / time;
  const bool begins = reset.data != nullptr && *reset.at(b, t) != 0;
  const float h = t == 0 ? initial.at(b)[u] : y.at(b, t - 1)[u];
  before.at(b, t)[u] = begins ? 0.0f : h;
}

// f(the size as a constant) if there is a kernel for it, else f(0).
template <class F>
void for_hidden(std::int64_t hidden, const void* weight, const F& f) {
  const bool vectors = reinterpret_cast<std::uintptr_t>(weight) % sizeof(float4) == 0;
  if (vectors && hidden == 64) return f(std::integral_constant<int, 64>());
  if (vectors && hidden == 32) return f(std::integral_constant<int, 32>());
  if (vectors && hidden == 16) return f(std::integral_constant<int, 16>());
  f(std::integral_constant<int, 0>());
}

// `floats` a unit of shared memory must be there for the kernels of any size.
void check_any(const char* where, std::int64_t hidden, std::int64_t floats) {
  constexpr std::int64_t shared = 48 * 1024;  // what a block has without asking for more
  mamba::check::range(where, "hidden on CUDA", hidden, 1, shared / 4 / floats);
}

}  // namespace

void run(const GruSequence& op, mamba::Stream& stream) {
  const char* where = "gru_sequence";
  const OnDevice current(stream.device(), where);
  Sequence s;
  s.inputs = Rows<const float>(op.inputs);
  s.weight = op.weight.data<float>();
  s.bias = op.bias.data<float>();
  s.initial = Rows<const float>(op.initial_state);
  s.final = Rows<float>(op.final_state);
  s.reset = Rows<const std::int32_t>(op.reset);
  s.y = Rows<float>(op.y);
  s.time = op.inputs.dim(1);
  s.hidden = static_cast<int>(op.weight.dim(1));
  const auto batch = static_cast<unsigned>(op.inputs.dim(0));
  if (batch == 0) return;
  for_hidden(s.hidden, s.weight, [&](auto size) {
    constexpr int hidden = decltype(size)::value;
    if constexpr (hidden > 0) {
      gru_kernel<hidden><<<batch, lanes * hidden, 0, handle(stream)>>>(s);
    } else {
      check_any(where, s.hidden, 2);
      const std::size_t shared = 2 * sizeof(float) * static_cast<std::size_t>(s.hidden);
      gru_any_kernel<<<batch, any_threads, shared, handle(stream)>>>(s);
    }
  });
  check(cudaGetLastError(), where);
}

void states_before(const GruSequenceGrad& op, const mamba::TensorView& before,
                   mamba::Stream& stream) {
  const OnDevice current(stream.device(), "gru_sequence_grad");
  const std::int64_t count = before.count();
  if (count == 0) return;
  states_before_kernel<<<blocks_for(count, any_threads), any_threads, 0, handle(stream)>>>(
      Rows<const float>(op.initial_state), Rows<const float>(op.y),
      Rows<const std::int32_t>(op.reset), before.dim(1), static_cast<int>(before.dim(2)), count,
      Rows<float>(before));
  check(cudaGetLastError(), "gru_sequence_grad");
}

void backward(const GruSequenceGrad& op, const mamba::ConstTensorView& before,
              const mamba::TensorView& g, mamba::Stream& stream) {
  const char* where = "gru_sequence_grad";
  const OnDevice current(stream.device(), where);
  Gradient s;
  s.inputs = Rows<const float>(op.inputs);
  s.before = Rows<const float>(before);
  s.weight = op.weight.data<float>();
  s.reset = Rows<const std::int32_t>(op.reset);
  s.dy = Rows<const float>(op.dy);
  s.dfinal = Rows<const float>(op.dfinal_state);
  s.dinitial = Rows<float>(op.dinitial_state);
  s.g = Rows<float>(g);
  s.dinputs = Rows<float>(op.dinputs);
  s.time = op.inputs.dim(1);
  s.hidden = static_cast<int>(op.weight.dim(1));
  const auto batch = static_cast<unsigned>(op.inputs.dim(0));
  if (batch == 0) return;
  for_hidden(s.hidden, s.weight, [&](auto size) {
    constexpr int hidden = decltype(size)::value;
    if constexpr (hidden > 0) {
      gru_grad_kernel<hidden><<<batch, lanes * hidden, 0, handle(stream)>>>(s);
    } else {
      check_any(where, s.hidden, 4);
      const std::size_t shared = 4 * sizeof(float) * static_cast<std::size_t>(s.hidden);
      gru_grad_any_kernel<<<batch, any_threads, shared, handle(stream)>>>(s);
    }
  });
  check(cudaGetLastError(), where);
}

}  // namespace mamba_rl::cuda
