// One step, straight from state row to state row. What it moves is the f32 state, read and written once:
// 16 bytes a thread and access, four states of one channel, neighbouring threads next to each other in
// memory. When the batch is large a thread takes several batch rows, because A = -exp(A_log) would
// otherwise be read (from the L2 cache) and computed once per row, and so that more loads are in flight.
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

// Four states from `n` on, of those that exist. Whole: all, and 16-byte aligned.
template <bool Whole>
__device__ __forceinline__ void load_states(const float* from, int n, int d_state, float* to) {
  if constexpr (Whole) {
    const auto four = load_vec<4>(from + n);
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
    store_vec(to + n, Vec<float, 4>{{from[0], from[1], from[2], from[3]}});
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (n + k < d_state) to[n + k] = from[k];
    }
  }
}
template <class T>
__device__ __forceinline__ Vec<T, 4> load_row(const T* from, int n, int d_state, bool wide) {
  if (wide) return load_vec<4>(from + n);
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

  __device__ __forceinline__ void load(const ScanOperands& op, std::int64_t row, int c, int n,
                                       bool wide_BC) {
    there = row < op.batch;
    b = there ? row : op.batch - 1;
    rows = op.rows(b);
    const bool reset = op.reset != nullptr && op.reset[b * op.reset_pitch] != 0;
    fresh = op.initial == nullptr || rows.read < 0 || rows.bad || reset;
    const float* from = op.initial + op.state(fresh ? 0 : rows.read, c);
#pragma unroll
    for (int q = 0; q < Quads; ++q) {
      if (!fresh) load_states<Whole>(from, n + 4 * q, op.d_state, h + 4 * q);
      B[q] = load_row(op.B.at<T>(b, 0), n + 4 * q, op.d_state, wide_BC);
      C[q] = load_row(op.C.at<T>(b, 0), n + 4 * q, op.d_state, wide_BC);
    }
    x = op.x.at<T>(b, 0)[c];
    dt = op.dt.at<T>(b, 0)[c];
    z = op.z.data != nullptr ? op.z.at<T>(b, 0)[c] : from_float<T>(0);
  }

  // The states one step on; this thread's part of y.
  __device__ __forceinline__ float advance_states(const float* A, float bias) {
    const float delta = softplus(__fadd_rn(to_float(dt), bias));
    const float delta_x = __fmul_rn(delta, to_float(x));
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

template <class T, bool Whole, int Rows, int Quads>
__global__ void __launch_bounds__(threads)
    step_kernel(const __grid_constant__ ScanOperands op, const StepCut cut) {
  const auto blocks = static_cast<unsigned>(cut.channel_blocks);
  const std::int64_t b0 = std::int64_t{blockIdx.x / blocks} * Rows;
  const auto thread = static_cast<int>(blockIdx.x % blocks * threads + threadIdx.x);
  const bool works = thread / cut.lanes < op.channels;
  const int c = works ? thread / cut.lanes : op.channels - 1;
  const int lane = thread & (cut.lanes - 1);
  const int n = 4 * Quads * lane;

  StepRow<T, Whole, Quads> row[Rows];
#pragma unroll
  for (int r = 0; r < Rows; ++r) row[r].load(op, b0 + r, c, n, cut.wide_BC);
  float A[4 * Quads];
#pragma unroll
  for (int q = 0; q < Quads; ++q) {
    load_states<Whole>(op.A_log + c * op.A_log_pitch, n + 4 * q, op.d_state, A + 4 * q);
  }
  const float bias = op.dt_bias != nullptr ? op.dt_bias[c] : 0;
  Output output;
  output.has_D = op.D != nullptr;
  output.has_z = op.z.data != nullptr;
  if (output.has_D) output.D = op.D[c];
#pragma unroll
  for (float& a : A) a = scaled_A(a);
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    float sum = row[r].advance_states(A, bias);
    const bool stores = works && row[r].there;
    if (stores) row[r].store(op, c, n);
    for (int apart = 1; apart < cut.lanes; apart *= 2) {
      sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
    }
    if (stores && lane == 0) row[r].store_y(op, c, output, sum);
  }
}

// Whether states can be taken four at a time wherever they are.
bool in_whole_quads(const SelectiveScan& op) {
  const auto fits = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), view.row_pitch() * 4, 16);
  };
  return op.A_log.dim(1) % 4 == 0 && fits(op.A_log) && fits(op.initial_state) &&
         fits(op.final_state) && fits(op.step_states);
}

template <class T, bool Whole, int Rows, int Quads>
void launch(const SelectiveScan& op, Stream& stream, const StepCut& cut) {
  const std::int64_t groups = (op.x.dim(0) + Rows - 1) / Rows;
  step_kernel<T, Whole, Rows, Quads>
      <<<static_cast<unsigned>(groups * cut.channel_blocks), threads, 0, handle(stream)>>>(
          ScanOperands(op, stream), cut);
  check(cudaGetLastError(), "selective_scan");
}

template <class T, bool Whole>
void step(const SelectiveScan& op, Stream& stream) {
  StepCut cut{1, 0, false};
  const std::int64_t quads = (op.A_log.dim(1) + 3) / 4;
  while (cut.lanes < 32 && cut.lanes < quads) cut.lanes *= 2;
  const std::int64_t row_threads = op.x.dim(2) * cut.lanes;
  cut.channel_blocks = static_cast<int>((row_threads + threads - 1) / threads);
  const auto wide = [&](const ConstTensorView& view) {
    return op.A_log.dim(1) % 4 == 0 &&
           is_aligned(view.data(), view.row_pitch() * size_of(view.dtype()), 4 * sizeof(T));
  };
  cut.wide_BC = wide(op.B) && wide(op.C);
  // Four rows a thread once four times fewer threads still fill the largest chip twice.
  const bool several = op.x.dim(0) >= 4 && op.x.dim(0) * row_threads >= std::int64_t{1} << 21;
  if (quads > 32) {
    launch<T, Whole, 1, 2>(op, stream, cut);
  } else if (several) {
    launch<T, Whole, 4, 1>(op, stream, cut);
  } else {
    launch<T, Whole, 1, 1>(op, stream, cut);
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
