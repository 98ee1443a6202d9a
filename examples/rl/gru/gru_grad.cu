// The gradient of a GRU over whole sequences, against time: see gru_walk.cuh. With d the gradient
// of h after a step, and slopes s,
//   d before = s_h d + sum_j W_r[j] s_r[j] d[j] + W_z[j] s_z[j] d[j] + W_n[j] s_g[j] d[j]
//            = s_h d + sum_j M[j] d[j]
// where M is known ahead of the walk: only a third of the products wait for d, and the others are
// computed while d is on its way.
#include "rl/gru/gru.hpp"
#include "rl/gru/gru_walk.cuh"

namespace mamba_rl::cuda {

namespace {

struct Gradient {
  const float* weight;
  Rows<const std::int32_t> reset;
  Rows<const float> slopes, dy;
  Rows<const float> dfinal;  // may be absent
  Rows<float> dinitial;      // may be absent
  Rows<float> dgates;
  Rows<float> sums;  // of dgates over time
  int time, hidden;
};

// A sum over time: over sixty-four steps, and over those sums, so that few terms meet a large one.
struct TimeSum {
  float part = 0, whole = 0;

  __device__ __forceinline__ void close(int step) {
    if (step % 64 != 63) return;
    whole += part;
    part = 0;
  }
  __device__ float result() const { return whole + part; }
};

// A thread's share of M, transposed.
template <int hidden, class Share>
class StepMatrix {
 public:
  __device__ StepMatrix(const float* weight, const Share& share) {
#pragma unroll
    for (int k = 0; k < Share::units; ++k) {
#pragma unroll
      for (int v = 0; v < Share::vectors; ++v) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* from = weight + (share.input(v) + i) * hidden + share.unit(k);
          r_[k][v][i] = from[0];
          z_[k][v][i] = from[hidden * hidden];
          g_[k][v][i] = from[2 * hidden * hidden];
        }
      }
    }
  }

  // Slopes of a step, into registers.
  __device__ __forceinline__ void load(const Floats<4>* slopes, const Share& share) {
#pragma unroll
    for (int v = 0; v < Share::vectors; ++v) {
      const Floats<4>* from = slopes + share.input(v) / 4;
      slopes_[v][0] = from[0];
      slopes_[v][1] = from[hidden / 4];
      slopes_[v][2] = from[3 * hidden / 4];
    }
  }

  // M of the step whose slopes were loaded last: nothing waits for it until d of that step is
  // there, so it fills the time in which sums of the step before are exchanged.
  __device__ __forceinline__ void make() {
#pragma unroll
    for (int v = 0; v < Share::vectors; ++v) {
#pragma unroll
      for (int k = 0; k < Share::units; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          m_[k][v][i] =
              fmaf(r_[k][v][i], slopes_[v][0].at[i],
                   fmaf(z_[k][v][i], slopes_[v][1].at[i], g_[k][v][i] * slopes_[v][2].at[i]));
        }
      }
    }
  }

  // start + M d of the own unit, where of its two threads one adds `start`.
  __device__ __forceinline__ float times(const Floats<4> (&d)[Share::vectors], float start,
                                         const Share& share) const {
    float sums[Share::units];
#pragma unroll
    for (int k = Share::units - 1; k >= 0; --k) {  // those that are given away come first
      float even = k == 0 ? start : 0.0f, odd = 0;
#pragma unroll
      for (int v = 0; v < Share::vectors; ++v) {
        even = fmaf(m_[k][v][0], d[v].at[0], even);
        odd = fmaf(m_[k][v][1], d[v].at[1], odd);
        even = fmaf(m_[k][v][2], d[v].at[2], even);
        odd = fmaf(m_[k][v][3], d[v].at[3], odd);
      }
      sums[k] = even + odd;
    }
    return share.gather(sums);
  }

 private:
  using Values = float[Share::units][Share::vectors][4];
  Values r_, z_, g_, m_;
  Floats<4> slopes_[Share::vectors][3];
};

// What the two threads of a unit need of a step: each half of the slopes of its gates.
struct Own {
  float even, odd, h, dy;
  bool begins;  // nothing passes to the step before

  template <class Step>
  __device__ Own(const Step& step, int unit, bool first) : begins(step.reset != 0) {
    constexpr int hidden = 4 * sizeof(step.values) / sizeof(step.values[0]) / 6;
    const float* values = &step.values[0].at[0] + unit;
    const float* half = values + (first ? 0 : 2 * hidden);
    even = half[0];
    odd = half[hidden];
    h = values[4 * hidden];
    dy = values[5 * hidden];
  }
};

template <int hidden>
__global__ void __launch_bounds__(2 * hidden) gru_grad_kernel(const Gradient s) {
  using Share = UnitShare<hidden, hidden == 16 ? 4 : 8>;
  using Queue = StepQueue<6 * hidden>;  // slopes and dy
  __shared__ typename Queue::Step steps[Queue::depth];
  __shared__ Floats<4> gradients[2][hidden / 4];
  const Share share;
  const int unit = share.unit(), index = static_cast<int>(threadIdx.x);
  const std::int64_t b = blockIdx.x, last = s.time - 1;
  const bool of_slopes = index < 5 * hidden / 4, first = share.first();
  Queue queue(
      steps,
      of_slopes ? s.slopes.at(b, last) + 4 * index : s.dy.at(b, last) + 4 * index - 5 * hidden,
      s.reset.data != nullptr ? s.reset.at(b, last) : nullptr,
      of_slopes                ? -s.slopes.step
      : index < Queue::vectors ? -s.dy.step
                               : -s.reset.step,
      s.time);
  StepMatrix<hidden, Share> matrix(s.weight, share);
  float dh = s.dfinal.data != nullptr ? s.dfinal.at(b)[unit] : 0.0f;
  float* dgates = s.dgates.at(b, last) + (first ? 0 : 2 * hidden) + unit;
  TimeSum even, odd;
  Exchange<hidden, Share> exchange(gradients, share);
  __syncthreads();
  Own next(queue.current(), unit, first);
  matrix.load(queue.current().values, share);
  matrix.make();
  matrix.load(queue.next().values, share);
  if (s.time > 0) dh += next.dy;
  for (int step = 0; step < s.time; ++step) {
    const Own now = next;
    const float d = dh;
    exchange.put(d);
    __syncthreads();
    Floats<4> x[Share::vectors];
    exchange.get(x);
    queue.advance();
    next = Own(queue.current(), unit, first);
    if (step + 1 == s.time) next.dy = 0;
    const float sum = matrix.times(x, first ? fmaf(now.h, d, next.dy) : 0.0f, share);
    dh = now.begins ? next.dy : sum;
    matrix.make();
    matrix.load(queue.next().values, share);
    dgates[0] = d * now.even;
    dgates[hidden] = d * now.odd;
    dgates -= s.dgates.step;
    even.part = fmaf(d, now.even, even.part);
    odd.part = fmaf(d, now.odd, odd.part);
    even.close(step);
    odd.close(step);
  }
  if (first && s.dinitial.data != nullptr) s.dinitial.at(b)[unit] = dh;
  float* const sums = s.sums.at(b) + (first ? 0 : 2 * hidden) + unit;
  sums[0] = even.result();
  sums[hidden] = odd.result();
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
  for (int t = s.time - 1; t >= 0; --t) {
    __syncthreads();
    const bool begins = s.reset.data != nullptr && *s.reset.at(b, t) != 0;
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      const float d = carried[u] + s.dy.at(b, t)[u];
      const float* slopes = s.slopes.at(b, t) + u;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const float dg = d * slopes[gate * hidden];
        s.dgates.at(b, t)[gate * hidden + u] = dg;
        if (gate != 2) gates[(gate == 3 ? 2 : gate) * hidden + u] = dg;
      }
      carried[u] = d * slopes[4 * hidden];
    }
    __syncthreads();
    for (int u = threadIdx.x; u < hidden; u += any_threads) {
      float sum = carried[u];
      for (int i = 0; i < 3 * hidden; ++i) {
        sum = fmaf(s.weight[std::int64_t{i} * hidden + u], gates[i], sum);
      }
      carried[u] = begins ? 0.0f : sum;
    }
  }
  for (int u = threadIdx.x; u < hidden; u += any_threads) {
    if (s.dinitial.data != nullptr) s.dinitial.at(b)[u] = carried[u];
    for (int gate = 0; gate < 4; ++gate) {  // what this thread wrote
      TimeSum sum;
      for (int t = 0; t < s.time; ++t) {
        sum.part += s.dgates.at(b, t)[gate * hidden + u];
        sum.close(t);
      }
      s.sums.at(b)[gate * hidden + u] = sum.result();
    }
  }
}

}  // namespace

void backward(const GruSequenceGrad& op, const mamba::TensorView& sums, mamba::Stream& stream) {
  const char* where = "gru_sequence_grad";
  const OnDevice current(stream.device(), where);
  Gradient s;
  s.weight = op.weight.data<float>();
  s.reset = Rows<const std::int32_t>(op.reset);
  s.slopes = Rows<const float>(op.slopes);
  s.dy = Rows<const float>(op.dy);
  s.dfinal = Rows<const float>(op.dfinal_state);
  s.dinitial = Rows<float>(op.dinitial_state);
  s.dgates = Rows<float>(op.dgates);
  s.sums = Rows<float>(sums);
  s.time = static_cast<int>(op.dy.dim(1));
  s.hidden = static_cast<int>(op.weight.dim(1));
  const auto batch = static_cast<unsigned>(op.dy.dim(0));
  if (batch == 0) return;
  for_hidden(s.hidden, by_vectors(s.slopes) && by_vectors(s.dy), [&](auto size) {
    constexpr int hidden = decltype(size)::value;
    if constexpr (hidden > 0) {
      gru_grad_kernel<hidden><<<batch, 2 * hidden, 0, handle(stream)>>>(s);
    } else {
      const std::size_t shared = any_shared(where, s.hidden, 4);
      gru_grad_any_kernel<<<batch, any_threads, shared, handle(stream)>>>(s);
    }
  });
  check(cudaGetLastError(), where);
}

}  // namespace mamba_rl::cuda
