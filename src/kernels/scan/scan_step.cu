// One step, straight from state row to state row. What it moves is the f32 state, read and written
// once: 16 bytes a thread and access, four states of one channel, neighbouring threads next to each
// other in memory. Two kernels:
//
//   step_kernel: any operands. A thread takes one batch row. For few rows, where latency counts,
//   and for states that may grow (detail::may_grow), of which it has a form of its own.
//
//   step_rows_kernel: a thread takes four batch rows, so that A is read and computed once for them,
//   and four loads of states are in flight. Four neighbouring lanes share a channel; each works out
//   delta and the gate of one of the four rows.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/scan/scan_launch.hpp"
#include "kernels/scan/scan_math.cuh"
#include "kernels/scan/scan_operands.cuh"

namespace mamba::cuda {

namespace {

constexpr int threads = 128;

struct StepCut {
  int lane_bits;  // 1 << lane_bits neighbouring threads share a channel, at most 32
  int lanes;
};

// Four states from `n` on. Whole: all exist, and are aligned; else those that exist, the others
// zero.
template <bool Whole, class T>
__device__ __forceinline__ Vec<T, 4> load_quad(const T* from, int n, int d_state) {
  if constexpr (Whole) {
    return load_vec<4>(from + n);
  } else {
    Vec<T, 4> quad;
#pragma unroll
    for (int k = 0; k < 4; ++k) quad.at[k] = n + k < d_state ? from[n + k] : from_float<T>(0);
    return quad;
  }
}
template <bool Whole>
__device__ __forceinline__ void store_quad(float* to, int n, int d_state,
                                           const Vec<float, 4>& quad) {
  if constexpr (Whole) {
    store_vec(to + n, quad);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (n + k < d_state) to[n + k] = quad.at[k];
    }
  }
}

// Where a thread works.
struct StepThread {
  std::int64_t group;  // of batch rows
  int channel, lane;
  bool works;

  __device__ __forceinline__ StepThread(const ScanOperands& op, const StepCut& cut) {
    group = blockIdx.y + std::int64_t{gridDim.y} * blockIdx.z;
    const auto thread = static_cast<int>(blockIdx.x * threads + threadIdx.x);
    lane = thread & (cut.lanes - 1);
    const int c = thread >> cut.lane_bits;
    works = c < op.channels;
    channel = works ? c : op.channels - 1;
  }
};

// What a channel needs of one batch row besides states. Plain, here and below: every batch row of
// the launch exists and continues from and to its own state row, without resets or step states.
template <class T, bool Plain>
struct StepInput {
  std::int64_t b;
  bool there;  // a batch row of this call; if not, its place is taken by the last one
  T x, z;
  float dt, bias, D;

  __device__ __forceinline__ void load(const ScanOperands& op, std::int64_t row, int c) {
    there = Plain || row < op.batch;
    b = there ? row : op.batch - 1;
    dt = op.dt_weight == nullptr ? to_float(op.dt.at<T>(b, 0)[c]) : 0;
    x = op.x.at<T>(b, 0)[c];
    z = op.z.data != nullptr ? op.z.at<T>(b, 0)[c] : from_float<T>(0);
    bias = op.dt_bias != nullptr ? op.dt_bias[c] : 0;
    D = op.D != nullptr ? op.D[c] : 0;
  }
  template <bool Grows>
  __device__ __forceinline__ float delta(const ScanOperands& op) const {
    return op.form.delta<Grows>(__fadd_rn(dt, bias));
  }
  __device__ __forceinline__ float gate() const { return silu_of_scan<T>(to_float(z)); }
  __device__ __forceinline__ void store_y(const ScanOperands& op, int c, float sum,
                                          float gate) const {
    float y = op.D != nullptr ? __fmaf_rn(D, to_float(x), sum) : sum;
    if (op.z.data != nullptr) y = __fmul_rn(y, gate);
    if constexpr (!Plain) {
      const StateRow<> rows = op.rows(b);
      if (rows.is_absent()) y = rows.bad ? __int_as_float(0x7fffffff) : 0;
      if (rows.bad && op.flag != nullptr) *op.flag = 1;
    }
    op.y.out<T>(b, 0)[c] = from_float<T>(y);
  }
};

// One thread's 4 Quads states of one channel of one batch row. Loads first, all at once: nothing is
// touched that would wait for one of them.
template <class T, bool Whole, bool Plain, int Quads>
struct ChannelStates {
  std::int64_t b;
  StateRow<> rows;
  bool fresh;  // begins at zero
  Vec<float, 4> h[Quads];
  Vec<T, 4> B[Quads], C[Quads];

  __device__ __forceinline__ void load(const ScanOperands& op, std::int64_t row, int c, int n) {
    if constexpr (Plain) {
      b = row;
      rows = {b, b, false, false};
      fresh = false;
    } else {
      b = row < op.batch ? row : op.batch - 1;
      rows = op.rows(b);
      const bool reset = op.reset != nullptr && op.reset[b * op.reset_pitch] != 0;
      fresh = op.initial == nullptr || rows.read < 0 || rows.bad || reset;
    }
    const float* from = op.initial + op.state(rows.read < 0 || rows.bad ? 0 : rows.read, c);
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      if (Plain || op.initial != nullptr) h[q] = load_quad<Whole>(from, n + 4 * q, op.d_state);
      B[q] = load_quad<Whole>(op.B.at<T>(b, 0), n + 4 * q, op.d_state);
      C[q] = load_quad<Whole>(op.C.at<T>(b, 0), n + 4 * q, op.d_state);
    }
  }

  // One step on; this thread's part of y.
  __device__ __forceinline__ float advance_all(const float (&A)[4 * Quads], float delta,
                                               float delta_x) {
    float sum = 0;
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      float four = 0;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float& state = h[q].at[k];
        state = advance(fresh ? 0 : state, delta, A[4 * q + k], delta_x, to_float(B[q].at[k]));
        const float weight = to_float(C[q].at[k]);
        four = k == 0 ? __fmul_rn(weight, state) : __fmaf_rn(weight, state, four);
      }
      sum = q == 0 ? four : __fadd_rn(sum, four);
    }
    return sum;
  }

  __device__ __forceinline__ void store(const ScanOperands& op, int c, int n) {
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      if (Plain || (op.final_state != nullptr && rows.write >= 0 && !rows.bad)) {
        store_quad<Whole>(op.final_state + op.state(rows.write, c), n + 4 * q, op.d_state, h[q]);
      }
      if (Plain || op.step_states.data == nullptr) continue;
      if (rows.is_absent()) {
#pragma unroll
        for (float& state : h[q].at) state = rows.bad ? __int_as_float(0x7fffffff) : 0;
      }
      store_quad<Whole>(op.step_states.out<float>(b, 0) + std::int64_t{c} * op.d_state, n + 4 * q,
                        op.d_state, h[q]);
    }
  }
};

template <bool Whole, int Quads>
__device__ __forceinline__ void load_A(const ScanOperands& op, int c, int n,
                                       float (&A)[4 * Quads]) {
#pragma unroll
  for (int q = 0; q < Quads; ++q) {
    const auto quad = load_quad<Whole>(op.A + c * op.A_pitch, n + 4 * q, op.d_state);
#pragma unroll
    for (int k = 0; k < 4; ++k) A[4 * q + k] = quad.at[k];
  }
}

// dt of a channel from its dt_rank inputs; the lanes of the channel share the sum.
template <int V, class T>
__device__ __forceinline__ float project_dt(const ScanOperands& op, std::int64_t b, int c, int lane,
                                            int lanes) {
  const T* low = op.dt.at<T>(b, 0);
  const T* weight = static_cast<const T*>(op.dt_weight) + c * op.dt_weight_pitch;
  float sum = 0;
#pragma unroll 4
  for (int k = lane * V; k < op.dt_rank; k += lanes * V) {
    const auto x = load_vec<V>(low + k), w = load_vec<V>(weight + k);
#pragma unroll
    for (int i = 0; i < V; ++i) sum = __fmaf_rn(to_float(x.at[i]), to_float(w.at[i]), sum);
  }
  for (int apart = 1; apart < lanes; apart *= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(all_lanes, sum, apart));
  }
  return sum;
}

// What a thread will read of what the kernel before does not write comes into L2 meanwhile. Not all
// of it with many rows, which hide each other's latency.
template <class T>
__device__ __forceinline__ void prefetch(const ScanOperands& op, std::int64_t b, int c, int lane,
                                         int lanes, int n) {
  constexpr int line = 128 / static_cast<int>(sizeof(T));
  prefetch_line(op.A + c * op.A_pitch);
  if (op.batch > 8) return;
  if (op.D != nullptr) prefetch_line(op.D + c);
  if (op.dt_bias != nullptr) prefetch_line(op.dt_bias + c);
  if (op.dt_weight != nullptr) {
    const T* weight = static_cast<const T*>(op.dt_weight) + c * op.dt_weight_pitch;
    for (int k = lane * line; k < op.dt_rank; k += lanes * line) prefetch_line(weight + k);
  }
  if (op.initial == nullptr || b >= op.batch || n >= op.d_state) return;
  const std::int64_t row = likely_row(op.read, b, op.state_rows);
  if (row >= 0) prefetch_line(op.initial + op.state(row, c) + n);
}

template <class T, bool Whole, bool Plain, int Quads, bool Grows>
__global__ void __launch_bounds__(threads, 6)
    step_kernel(const __grid_constant__ ScanOperands op, const StepCut cut) {
  const StepThread thread(op, cut);
  const int c = thread.channel, n = 4 * Quads * thread.lane;
  let_next_begin();
  prefetch<T>(op, thread.group, c, thread.lane, cut.lanes, n);
  wait_for_previous();
  if (thread.group >= op.batch) return;
  StepInput<T, Plain> input;
  ChannelStates<T, Whole, Plain, Quads> states;
  float A[4 * Quads];
  input.load(op, thread.group, c);
  load_A<Whole, Quads>(op, c, n, A);
  states.load(op, thread.group, c, n);
  if (op.dt_weight != nullptr) {
    input.dt = op.dt_in_quads ? project_dt<4, T>(op, input.b, c, thread.lane, cut.lanes)
                              : project_dt<1, T>(op, input.b, c, thread.lane, cut.lanes);
  }
  const float delta = input.template delta<Grows>(op);
#pragma unroll
  for (float& a : A) a = op.form.scaled<Grows>(a);
  const float gate = input.gate();  // before the sum is known
  float sum = states.advance_all(A, delta, __fmul_rn(delta, to_float(input.x)));
  if (thread.works) states.store(op, c, n);
  for (int apart = 1; apart < cut.lanes; apart *= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(all_lanes, sum, apart));
  }
  if (thread.works && thread.lane == 0) input.store_y(op, c, sum, gate);
}

// Sums over lanes, of row r in the lanes with lane % 4 == r: each exchange halves what is carried.
__device__ __forceinline__ float sum_of_my_row(const float (&sum)[4], int lane, int lanes) {
  const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
  const auto exchange = [](bool second, float a, float b, int apart) {
    const float sent = second ? a : b;
    return __fadd_rn(second ? b : a, __shfl_xor_sync(all_lanes, sent, apart));
  };
  const float low = exchange(odd, sum[0], sum[1], 1), high = exchange(odd, sum[2], sum[3], 1);
  float mine = exchange(upper, low, high, 2);
  for (int apart = 4; apart < lanes; apart *= 2) {
    mine = __fadd_rn(mine, __shfl_xor_sync(all_lanes, mine, apart));
  }
  return mine;
}

template <class T, bool Plain>
__global__ void __launch_bounds__(threads, 6)
    step_rows_kernel(const __grid_constant__ ScanOperands op, const StepCut cut) {
  const StepThread thread(op, cut);
  const int c = thread.channel, n = 4 * thread.lane;
  const std::int64_t b0 = 4 * thread.group;
  let_next_begin();
  wait_for_previous();
  if (b0 >= op.batch) return;
  StepInput<T, Plain> mine;
  ChannelStates<T, true, Plain, 1> states[4];
  float A[4];
  mine.load(op, b0 + (thread.lane & 3), c);
  load_A<true, 1>(op, c, n, A);
#pragma unroll
  for (int r = 0; r < 4; ++r) states[r].load(op, b0 + r, c, n);
  const float delta = mine.template delta<false>(op);
  const float delta_x = __fmul_rn(delta, to_float(mine.x));
#pragma unroll
  for (float& a : A) a = op.form.scaled<false>(a);
  float sum[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    sum[r] = states[r].advance_all(A, __shfl_sync(all_lanes, delta, r, 4),
                                   __shfl_sync(all_lanes, delta_x, r, 4));
    if (thread.works && (Plain || b0 + r < op.batch)) states[r].store(op, c, n);
  }
  const float total = sum_of_my_row(sum, thread.lane, cut.lanes);
  if (thread.works && mine.there && thread.lane < 4) mine.store_y(op, c, total, mine.gate());
}

// Whether everything over states can be taken four at a time wherever it is, by every lane: their
// number is a power of two.
bool in_whole_quads(const SelectiveScan& op) {
  const std::int64_t d_state = detail::d_state_of(op);
  const auto fits = [](const ConstTensorView& view) {
    const std::int64_t size = view ? size_of(view.dtype()) : 4;
    return !view || is_aligned(view.data(), view.row_pitch() * size, 4 * size);
  };
  return d_state % 4 == 0 && (d_state & (d_state - 1)) == 0 && fits(detail::decays_of(op)) &&
         fits(op.B) && fits(op.C) && fits(op.initial_state) && fits(op.final_state) &&
         fits(op.step_states);
}

template <class T, bool Whole>
void step(const SelectiveScan& op, Stream& stream) {
  StepCut cut{0, 1};
  const std::int64_t batch = op.x.dim(0);
  const std::int64_t quads = (detail::d_state_of(op) + 3) / 4;
  while (cut.lanes < 32 && cut.lanes < quads) cut.lanes = 1 << ++cut.lane_bits;
  const std::int64_t row_threads = op.x.dim(2) * cut.lanes;
  // Four rows a thread once a quarter of the threads still fills the largest chip.
  const bool rows = Whole && !op.dt_weight && cut.lanes == quads && cut.lanes >= 4 && batch >= 4 &&
                    batch * row_threads >= std::int64_t{1} << 20;
  const auto run_groups = [&](auto kernel, std::int64_t groups) {
    constexpr std::int64_t most = 65535;
    const dim3 grid(static_cast<unsigned>((row_threads + threads - 1) / threads),
                    static_cast<unsigned>(std::min(groups, most)),
                    static_cast<unsigned>((groups + most - 1) / most));
    launch_chained(kernel, grid, threads, 0, stream, "selective_scan", ScanOperands(op, stream),
                   cut);
  };
  const bool plain =
      Whole && op.initial_state && op.final_state && !op.rows.read && !op.reset && !op.step_states;
  if (detail::may_grow(op)) {
    run_groups(
        quads > 32 ? step_kernel<T, Whole, false, 2, true> : step_kernel<T, Whole, false, 1, true>,
        batch);
  } else if (rows && plain && batch % 4 == 0) {
    run_groups(step_rows_kernel<T, true>, batch / 4);
  } else if (rows) {
    run_groups(step_rows_kernel<T, false>, (batch + 3) / 4);
  } else if (quads > 32) {
    run_groups(step_kernel<T, Whole, false, 2, false>, batch);
  } else {
    run_groups(
        plain ? step_kernel<T, Whole, Whole, 1, false> : step_kernel<T, Whole, false, 1, false>,
        batch);
  }
}

}  // namespace

void scan_step(const SelectiveScan& op, Stream& stream) {
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    in_whole_quads(op) ? step<T, true>(op, stream) : step<T, false>(op, stream);
  });
}

}  // namespace mamba::cuda
