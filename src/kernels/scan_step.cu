// One step, straight from state row to state row. What it moves is the f32 state, read and written once:
// 16 bytes a thread and access, four states of one channel, neighbouring threads next to each other in
// memory. Two kernels:
//
//   step_kernel       any operands; a thread takes one batch row. For few rows, where latency counts.
//   step_rows_kernel  a thread takes four batch rows, so that A = -exp(A_log) is read and computed once
//                     for them and four state loads are in flight. Four neighbouring lanes share a
//                     channel; each works out delta and the gate of one of the four rows.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/scan_launch.hpp"
#include "kernels/scan_math.cuh"
#include "kernels/scan_operands.cuh"

namespace mamba::cuda {

namespace {

constexpr int threads = 128;

struct StepCut {
  int lanes;           // neighbouring threads that share a channel: a power of two up to 32
  int channel_blocks;  // blocks per group of batch rows
  bool wide_BC;        // B and C can be read four at a time
};

// Four states from `n` on, of those that exist. Whole: all four or, for a lane beyond the last (12 states
// take 4 lanes), none; and 16-byte aligned.
template <bool Whole>
__device__ __forceinline__ void load_states(const float* from, int n, int d_state, float* to) {
  if constexpr (Whole) {
    const auto four = n < d_state ? load_vec<4>(from + n) : Vec<float, 4>{};
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = four.at[k];
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) to[k] = n + k < d_state ? from[n + k] : 0;
  }
}
template <bool Whole>
__device__ __forceinline__ void store_states(float* to, int n, int d_state, const float* from) {
  if constexpr (Whole) {
    if (n < d_state) store_vec(to + n, Vec<float, 4>{{from[0], from[1], from[2], from[3]}});
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (n + k < d_state) to[n + k] = from[k];
    }
  }
}
template <class T>
__device__ __forceinline__ Vec<T, 4> load_row(const T* from, int n, int d_state, bool wide) {
  if (wide && n < d_state) return load_vec<4>(from + n);
  Vec<T, 4> row;
#pragma unroll
  for (int k = 0; k < 4; ++k) row.at[k] = n + k < d_state ? from[n + k] : from_float<T>(0);
  return row;
}

// One thread's part of one batch row: 4 Quads states of one channel. Loads first, all at once.
template <class T, bool Whole, int Quads>
struct StepRow {
  std::int64_t b;
  ScanRows rows;
  bool there, fresh;  // a batch row of this call; its state begins at zero
  T x, dt, z;
  Vec<T, 4> B[Quads], C[Quads];
  float h[4 * Quads];

  __device__ __forceinline__ void locate(const ScanOperands& op, std::int64_t row) {
    there = row < op.batch;
    b = there ? row : op.batch - 1;
    rows = op.rows(b);
  }
  __device__ __forceinline__ void load_states_of(const ScanOperands& op, std::int64_t row, int c,
                                                 int n, bool wide_BC) {
    locate(op, row);
    const bool reset = op.reset != nullptr && op.reset[b * op.reset_pitch] != 0;
    fresh = op.initial == nullptr || rows.read < 0 || rows.bad || reset;
    const float* from = op.initial + op.state(fresh ? 0 : rows.read, c);
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      if (!fresh) load_states<Whole>(from, n + 4 * q, op.d_state, h + 4 * q);
      B[q] = load_row(op.B.at<T>(b, 0), n + 4 * q, op.d_state, wide_BC);
      C[q] = load_row(op.C.at<T>(b, 0), n + 4 * q, op.d_state, wide_BC);
    }
  }
  __device__ __forceinline__ void load_inputs(const ScanOperands& op, int c) {
    x = op.x.at<T>(b, 0)[c];
    dt = op.dt.at<T>(b, 0)[c];
    z = op.z.data != nullptr ? op.z.at<T>(b, 0)[c] : from_float<T>(0);
  }
  __device__ __forceinline__ void load(const ScanOperands& op, std::int64_t row, int c, int n,
                                       bool wide_BC) {
    load_states_of(op, row, c, n, wide_BC);
    load_inputs(op, c);
  }

  __device__ __forceinline__ float delta(float bias) const {
    return softplus(__fadd_rn(to_float(dt), bias));
  }

  // The states one step on; this thread's part of y.
  __device__ __forceinline__ float advance_states(const float* A, float delta, float delta_x) {
    float sum = 0;
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      float pair[2];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float& state = h[4 * q + k];
        state = advance(fresh ? 0 : state, delta, A[4 * q + k], delta_x, to_float(B[q].at[k]));
        const float weight = to_float(C[q].at[k]);
        pair[k / 2] =
            k % 2 == 0 ? __fmul_rn(weight, state) : __fmaf_rn(weight, state, pair[k / 2]);
      }
      const float four = __fadd_rn(pair[0], pair[1]);
      sum = q == 0 ? four : __fadd_rn(sum, four);
    }
    return sum;
  }

  __device__ __forceinline__ void store(const ScanOperands& op, int c, int n) {
    const float absent = rows.bad ? __int_as_float(0x7fffffff) : 0;
#pragma unroll
    for (float& state : h) state = rows.is_absent() ? absent : state;
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      if (op.final_state != nullptr && rows.write >= 0 && !rows.bad) {
        store_states<Whole>(op.final_state + op.state(rows.write, c), n + 4 * q, op.d_state,
                            h + 4 * q);
      }
      if (op.step_states.data != nullptr) {
        store_states<Whole>(op.step_states.out<float>(b, 0) + std::int64_t{c} * op.d_state,
                            n + 4 * q, op.d_state, h + 4 * q);
      }
    }
  }

  __device__ __forceinline__ void store_y(const ScanOperands& op, int c, const Output& output,
                                          float sum) const {
    float y = output.of<T>(sum, to_float(x), to_float(z));
    if (rows.padding) y = 0;
    if (rows.bad) {
      y = __int_as_float(0x7fffffff);
      if (op.flag != nullptr) *op.flag = 1;
    }
    op.y.out<T>(b, 0)[c] = from_float<T>(y);
  }
};

struct StepThread {
  std::int64_t group;  // of batch rows
  int channel, lane;
  bool works;
  Output output;
  float bias;

  __device__ __forceinline__ StepThread(const ScanOperands& op, const StepCut& cut) {
    const auto blocks = static_cast<unsigned>(cut.channel_blocks);
    group = blockIdx.x / blocks;
    const auto thread = static_cast<int>(blockIdx.x % blocks * threads + threadIdx.x);
    lane = thread & (cut.lanes - 1);
    const int c = thread / cut.lanes;
    works = c < op.channels;
    channel = works ? c : op.channels - 1;
    bias = op.dt_bias != nullptr ? op.dt_bias[channel] : 0;
    output.has_D = op.D != nullptr;
    output.has_z = op.z.data != nullptr;
    if (output.has_D) output.D = op.D[channel];
  }
};

template <class T, bool Whole, int Quads>
__global__ void __launch_bounds__(threads)
    step_kernel(const __grid_constant__ ScanOperands op, const StepCut cut) {
  const StepThread thread(op, cut);
  const int n = 4 * Quads * thread.lane;
  StepRow<T, Whole, Quads> row;
  row.load(op, thread.group, thread.channel, n, cut.wide_BC);
  float A[4 * Quads];
#pragma unroll
  for (int q = 0; q < Quads; ++q) {
    load_states<Whole>(op.A_log + thread.channel * op.A_log_pitch, n + 4 * q, op.d_state,
                       A + 4 * q);
  }
#pragma unroll
  for (float& a : A) a = scaled_A(a);
  const float delta = row.delta(thread.bias);
  float sum = row.advance_states(A, delta, __fmul_rn(delta, to_float(row.x)));
  if (thread.works) row.store(op, thread.channel, n);
  for (int apart = 1; apart < cut.lanes; apart *= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
  }
  if (thread.works && thread.lane == 0) row.store_y(op, thread.channel, thread.output, sum);
}

// Sums over lanes, of row r in the lanes with lane % 4 == r: each exchange halves what is carried.
__device__ __forceinline__ float sum_of_my_row(const float (&sum)[4], int lane, int lanes) {
  const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
  const auto exchange = [](bool second, float a, float b, int apart) {
    const float sent = second ? a : b;
    return __fadd_rn(second ? b : a, __shfl_xor_sync(0xffffffffu, sent, apart));
  };
  const float low = exchange(odd, sum[0], sum[1], 1), high = exchange(odd, sum[2], sum[3], 1);
  float mine = exchange(upper, low, high, 2);
  for (int apart = 4; apart < lanes; apart *= 2) {
    mine = __fadd_rn(mine, __shfl_xor_sync(0xffffffffu, mine, apart));
  }
  return mine;
}

template <class T>
__global__ void __launch_bounds__(threads)
    step_rows_kernel(const __grid_constant__ ScanOperands op, const StepCut cut) {
  const StepThread thread(op, cut);
  const int c = thread.channel, n = 4 * thread.lane;
  StepRow<T, true, 1> row[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) row[r].load_states_of(op, 4 * thread.group + r, c, n, true);
  StepRow<T, true, 1> mine;
  mine.locate(op, 4 * thread.group + (thread.lane & 3));
  mine.load_inputs(op, c);
  float A[4];
  load_states<true>(op.A_log + c * op.A_log_pitch, n, op.d_state, A);
#pragma unroll
  for (float& a : A) a = scaled_A(a);
  const float delta = mine.delta(thread.bias);
  const float delta_x = __fmul_rn(delta, to_float(mine.x));
  float sum[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    sum[r] = row[r].advance_states(A, __shfl_sync(0xffffffffu, delta, r, 4),
                                   __shfl_sync(0xffffffffu, delta_x, r, 4));
    if (thread.works && row[r].there) row[r].store(op, c, n);
  }
  const float total = sum_of_my_row(sum, thread.lane, cut.lanes);
  if (thread.works && mine.there && thread.lane < 4) mine.store_y(op, c, thread.output, total);
}

// Whether states can be taken four at a time wherever they are.
bool in_whole_quads(const SelectiveScan& op) {
  const auto fits = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), view.row_pitch() * 4, 16);
  };
  return op.A_log.dim(1) % 4 == 0 && fits(op.A_log) && fits(op.initial_state) &&
         fits(op.final_state) && fits(op.step_states);
}

template <class T, bool Whole>
void step(const SelectiveScan& op, Stream& stream) {
  StepCut cut{1, 0, false};
  const std::int64_t batch = op.x.dim(0);
  const std::int64_t quads = (op.A_log.dim(1) + 3) / 4;
  while (cut.lanes < 32 && cut.lanes < quads) cut.lanes *= 2;
  const std::int64_t row_threads = op.x.dim(2) * cut.lanes;
  cut.channel_blocks = static_cast<int>((row_threads + threads - 1) / threads);
  const auto wide = [&](const ConstTensorView& view) {
    return op.A_log.dim(1) % 4 == 0 &&
           is_aligned(view.data(), view.row_pitch() * size_of(view.dtype()), 4 * sizeof(T));
  };
  cut.wide_BC = wide(op.B) && wide(op.C);
  // Four rows a thread once a quarter of the threads still fills the largest chip.
  const bool rows = Whole && cut.wide_BC && cut.lanes == quads && cut.lanes >= 4 && batch >= 4 &&
                    batch * row_threads >= std::int64_t{1} << 20;
  const auto launch = [&](auto kernel, std::int64_t groups) {
    kernel<<<static_cast<unsigned>(groups * cut.channel_blocks), threads, 0, handle(stream)>>>(
        ScanOperands(op, stream), cut);
    check(cudaGetLastError(), "selective_scan");
  };
  if (rows) {
    launch(step_rows_kernel<T>, (batch + 3) / 4);
  } else if (quads > 32) {
    launch(step_kernel<T, Whole, 2>, batch);
  } else {
    launch(step_kernel<T, Whole, 1>, batch);
  }
}

}  // namespace

void scan_step(const SelectiveScan& op, Stream& stream) {
  detail::visit(op.x.dtype(),
                [&](auto type) {
                  using T = typename decltype(type)::type;
                  in_whole_quads(op) ? step<T, true>(op, stream) : step<T, false>(op, stream);
                });
}

}  // namespace mamba::cuda
