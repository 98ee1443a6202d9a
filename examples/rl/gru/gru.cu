// A GRU over whole sequences: see gru_walk.cuh.
#include "rl/gru/gru.hpp"

#include "rl/gru/gru_math.cuh"
#include "rl/gru/gru_walk.cuh"

namespace mamba_rl::cuda {

namespace {

struct Sequence {
  Rows<const float> inputs;
  const float *weight, *bias;
  Rows<const float> initial;
  Rows<float> final;  // may be absent
  Rows<const std::int32_t> reset;
  Rows<float> y;
  Rows<float> before, slopes;  // may be absent
  int time, hidden;
};

// What the step before left, written while a step goes on. A unit's two threads write half each.
template <int hidden, bool keeps>
class Output {
 public:
  __device__ Output(const Sequence& s, bool first, std::int64_t b, int unit)
      : first_(first),
        y_(s.y.at(b, -1) + unit),
        y_step_(s.y.step),
        slopes_(s.slopes.at(b, -1) + (first ? 0 : 2 * hidden) + unit),
        slopes_step_(s.slopes.step),
        last_((first ? s.slopes.at(b, -1) + 4 * hidden : s.before.at(b, -1)) + unit),
        last_step_(first ? s.slopes.step : s.before.step) {}

  // Of steps -1, 0, 1, ...: the first of these is nowhere.
  __device__ __forceinline__ void put(bool is, const GruUnit& unit, float before, float h) {
    if (is && first_) *y_ = h;
    y_ += y_step_;
    if constexpr (keeps) {
      const GruSlopes slopes = unit.slopes(before);
      const float even = first_ ? slopes.i_r : slopes.i_n;
      const float odd = first_ ? slopes.i_z : slopes.g_n;
      const float last = first_ ? slopes.h : before;
      if (is) slopes_[0] = even;
      if (is) slopes_[hidden] = odd;
      if (is) *last_ = last;
      slopes_ += slopes_step_;
      last_ += last_step_;
    }
  }

 private:
  bool first_;
  float* y_;
  std::int64_t y_step_;
  float* slopes_;
  std::int64_t slopes_step_;
  float* last_;
  std::int64_t last_step_;
};

// The projected inputs of a unit at one step.
struct Inputs {
  float r, z, n;
  bool begins;  // h becomes zero before the step

  template <class Step>
  __device__ Inputs(const Step& step, int unit) : begins(step.reset != 0) {
    constexpr int hidden = 4 * sizeof(step.values) / sizeof(step.values[0]) / 3;
    const float* values = &step.values[0].at[0] + unit;
    r = values[0];
    z = values[hidden];
    n = values[2 * hidden];
  }
};

// `start`, and the products of one gate's weights with this thread's part of h.
template <class Share>
__device__ __forceinline__ float product(const Share& share,
                                         const Floats<4> (&weight)[Share::units][Share::vectors],
                                         const Floats<4> (&h)[Share::vectors], float start) {
  float sums[Share::units];
#pragma unroll
  for (int k = 0; k < Share::units; ++k) {
    float even = k == 0 ? start : 0.0f, odd = 0;  // two chains: an FMA takes four cycles
#pragma unroll
    for (int v = 0; v < Share::vectors; ++v) {
      even = fmaf(weight[k][v].at[0], h[v].at[0], even);
      odd = fmaf(weight[k][v].at[1], h[v].at[1], odd);
      even = fmaf(weight[k][v].at[2], h[v].at[2], even);
      odd = fmaf(weight[k][v].at[3], h[v].at[3], odd);
    }
    sums[k] = even + odd;
  }
  return share.gather(sums);
}

template <int hidden, bool keeps>
__global__ void __launch_bounds__(2 * hidden) gru_kernel(const Sequence s) {
  using Share = UnitShare<hidden, 4>;
  using Queue = StepQueue<3 * hidden>;
  __shared__ typename Queue::Step steps[Queue::depth];
  __shared__ Floats<4> states[2][hidden / 4];
  const Share share;
  const int unit = share.unit();
  const std::int64_t b = blockIdx.x;
  Queue queue(steps, s.inputs.at(b) + 4 * threadIdx.x,
              s.reset.data != nullptr ? s.reset.at(b) : nullptr,
              threadIdx.x < Queue::vectors ? s.inputs.step : s.reset.step, s.time);
  Floats<4> weight[3][Share::units][Share::vectors];
  float bias[3];
#pragma unroll
  for (int gate = 0; gate < 3; ++gate) {
#pragma unroll
    for (int k = 0; k < Share::units; ++k) {
#pragma unroll
      for (int v = 0; v < Share::vectors; ++v) {
        weight[gate][k][v] = *reinterpret_cast<const Floats<4>*>(
            s.weight + (gate * hidden + share.unit(k)) * hidden + share.input(v));
      }
    }
    bias[gate] = s.bias[gate * hidden + unit];
  }
  Exchange<hidden, Share> exchange(states, share);
  Output<hidden, keeps> output(s, share.first(), b, unit);
  float h = *(s.initial.at(b) + unit), before = 0;
  GruUnit gates{};
  __syncthreads();
  Inputs next(queue.current(), unit);
  for (int t = 0; t < s.time; ++t) {
    const Inputs now = next;
    const float left = h;
    if (now.begins) h = 0;
    exchange.put(h);
    __syncthreads();
    Floats<4> x[Share::vectors];
    exchange.get(x);
    queue.advance();
    // A sum is of two threads: one of them begins with what is added. What nothing waits for comes
    // between the products, where ptxas finds room for it.
    const bool first = share.first();
    const float r = product(share, weight[0], x, first ? now.r + bias[0] : 0);
    const float g_n = product(share, weight[2], x, first ? bias[2] : 0);
    next = Inputs(queue.current(), unit);
    output.put(t > 0, gates, before, left);
    const float z = product(share, weight[1], x, first ? now.z + bias[1] : 0);
    before = h;
    gates = gru_unit(r, z, now.n, g_n);
    h = gates.next(h);
  }
  output.put(s.time > 0, gates, before, h);
  if (share.first() && s.final.data != nullptr) s.final.at(b)[unit] = h;
}

// Any size: a thread has every any_threads-th unit. [2][hidden] floats of shared memory.
__global__ void __launch_bounds__(any_threads) gru_any_kernel(const Sequence s) {
  extern __shared__ float states[];
  const int hidden = s.hidden;
  const std::int64_t b = blockIdx.x;
  for (int u = threadIdx.x; u < hidden; u += any_threads) states[u] = s.initial.at(b)[u];
  float *now = states, *next = states + hidden;
  for (int t = 0; t < s.time; ++t) {
    __syncthreads();
    const bool begins = s.reset.data != nullptr && *s.reset.at(b, t) != 0;
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      float g[3];
      for (int gate = 0; gate < 3; ++gate) {
        const std::int64_t row = std::int64_t{gate} * hidden + u;
        g[gate] = s.bias[row];
        for (int j = 0; !begins && j < hidden; ++j) {
          g[gate] = fmaf(s.weight[row * hidden + j], now[j], g[gate]);
        }
      }
      const float* i = s.inputs.at(b, t) + u;
      const GruUnit unit = gru_unit(i[0] + g[0], i[hidden] + g[1], i[2 * hidden], g[2]);
      const float before = begins ? 0.0f : now[u];
      next[u] = s.y.at(b, t)[u] = unit.next(before);
      if (s.slopes.data == nullptr) continue;
      s.before.at(b, t)[u] = before;
      const GruSlopes slopes = unit.slopes(before);
      const float each[5] = {slopes.i_r, slopes.i_z, slopes.i_n, slopes.g_n, slopes.h};
      for (int k = 0; k < 5; ++k) s.slopes.at(b, t)[k * hidden + u] = each[k];
    }
    float* const past = now;
    now = next;
    next = past;
  }
  __syncthreads();
  if (s.final.data == nullptr) return;
  for (int u = threadIdx.x; u < hidden; u += any_threads) s.final.at(b)[u] = now[u];
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
  s.before = Rows<float>(op.before);
  s.slopes = Rows<float>(op.slopes);
  s.time = static_cast<int>(op.inputs.dim(1));
  s.hidden = static_cast<int>(op.weight.dim(1));
  const auto batch = static_cast<unsigned>(op.inputs.dim(0));
  if (batch == 0) return;
  const bool vectors = by_vectors(s.inputs) && reinterpret_cast<std::uintptr_t>(s.weight) % 16 == 0;
  for_hidden(s.hidden, vectors, [&](auto size) {
    constexpr int hidden = decltype(size)::value;
    if constexpr (hidden > 0) {
      const auto kernel = op.slopes ? gru_kernel<hidden, true> : gru_kernel<hidden, false>;
      kernel<<<batch, 2 * hidden, 0, handle(stream)>>>(s);
    } else {
      const std::size_t shared = any_shared(where, s.hidden, 2);
      gru_any_kernel<<<batch, any_threads, shared, handle(stream)>>>(s);
    }
  });
  check(cudaGetLastError(), where);
}

}  // namespace mamba_rl::cuda
