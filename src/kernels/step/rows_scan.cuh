// dt_proj and the scan of one step of some tens of rows.
//
// A block has 32 channels of 8 batch rows. dt of both is one small product on the tensor cores;
// then four neighbouring lanes have the 16 states of a channel in a row, a thread those of four
// rows. States and weights are on their way before the kernel's turn: nothing that may still run
// writes them (see rows_step.cu).
#pragma once

#include "kernels/step/rows_step.cuh"

namespace mamba::cuda::rows {

constexpr int scan_channels = 32, scan_rows = 8;
constexpr int scan_threads = scan_channels * scan_rows;
constexpr int scan_lanes = 4;  // of a channel in a row
constexpr int lane_states = stack::d_state / scan_lanes;
constexpr int scan_each = scan_lanes;  // rows of a thread
constexpr int dt_depth = 16;           // inputs of a product of the tensor cores
constexpr int dt_parts = scan_threads / 32 / (scan_channels / 16);  // warps of 16 channels
constexpr int dt_most = stack::most_dt_rank / dt_depth / dt_parts;  // products of a warp

// A warp's share of dt = low weight^T: 16 channels, 8 rows, every dt_parts-th stretch of 16 inputs.
struct DtProduct {
  int channel, part;  // the first of 16; which stretches
  uint2 weight[dt_most][2];

  __device__ __forceinline__ void load(const Operands& op, int first, int warp, int g, int q) {
    channel = warp % 2 * 16;
    part = warp / 2;
    const auto* from = static_cast<const T*>(op.layer.dt_proj) +
                       std::int64_t{first + channel + g} * op.step.dt_rank + 4 * q;
#pragma unroll
    for (int i = 0; i < dt_most; ++i) {
      const int k = (part + i * dt_parts) * dt_depth;
      const bool there = k < op.step.dt_rank;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* at = from + std::int64_t{half} * 8 * op.step.dt_rank + k;
        weight[i][half] = there ? *reinterpret_cast<const uint2*>(at) : uint2{};
      }
    }
  }
  // Of the row whose selection begins at `low`.
  __device__ __forceinline__ void multiply(const Operands& op, const T* low, int q,
                                           float (&sums)[4]) const {
#pragma unroll
    for (int i = 0; i < dt_most; ++i) {
      const int k = (part + i * dt_parts) * dt_depth;
      if (k >= op.step.dt_rank) break;
      const uint2 x = *reinterpret_cast<const uint2*>(low + k + 4 * q);
      mma<T>(sums, weight[i][0].x, weight[i][1].x, weight[i][0].y, weight[i][1].y, x.x, x.y);
    }
  }
};

__global__ void __launch_bounds__(scan_threads, 3)
    scan_kernel(const __grid_constant__ Operands op) {
  __shared__ float dt[dt_parts][scan_rows][scan_channels];
  __shared__ float deltas[scan_rows][scan_channels], inputs[scan_rows][scan_channels];
  __shared__ float sums[scan_rows][scan_channels];
  const Mamba1StepSizes& s = op.step;
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32, g = lane / 4, q = lane % 4;
  const int c0 = static_cast<int>(blockIdx.x) * scan_channels;
  const int n0 = static_cast<int>(blockIdx.y) * scan_rows;

  let_next_begin();
  // Early: what only kernels before the last one have written.
  const int j = thread / scan_lanes % scan_channels;
  const int first_row = thread / (scan_lanes * scan_channels);
  constexpr int row_step = scan_threads / (scan_lanes * scan_channels);
  Vec<float, lane_states> h[scan_each];
  std::int64_t place[scan_each];
  const auto state_at = [&](int row) {
    return (std::int64_t{row} * s.d_inner + c0 + j) * stack::d_state + q * lane_states;
  };
#pragma unroll
  for (int i = 0; i < scan_each; ++i) {
    const int n = n0 + first_row + i * row_step;
    StateRow<int> row{-1, -1, false, false};
    if (n < s.rows) row = state_row(s, n);
    h[i] = {};
    if (row.read >= 0) h[i] = load_vec<lane_states>(op.layer.ssm + state_at(row.read));
    place[i] = row.write >= 0 ? state_at(row.write) : -1;
  }
  DtProduct product;
  product.load(op, c0, thread / 32, g, q);
  float A[lane_states];
  load_floats<lane_states>(op.layer.A_log + state_at(0), A);
  const float D = op.layer.D[c0 + lane], bias = op.layer.dt_bias[c0 + lane];
  wait_for_previous();

  const int width = s.dt_rank + 2 * stack::d_state;
  const auto selection = [&](int n) { return op.selection + min(n, s.rows - 1) * width; };
  const int mine = min(n0 + thread / scan_channels, s.rows - 1);  // row of channel `lane`
  const std::int64_t at = std::int64_t{mine} * s.d_inner + c0 + lane;
  const float u = to_float(op.conv.y[at]), z = to_float(op.z[at]);
  Vec<T, lane_states> B[scan_each], C[scan_each];
#pragma unroll
  for (int i = 0; i < scan_each; ++i) {
    const T* from = selection(n0 + first_row + i * row_step) + s.dt_rank + q * lane_states;
    B[i] = load_vec<lane_states>(from);
    C[i] = load_vec<lane_states>(from + stack::d_state);
  }
  float low[4] = {};
  product.multiply(op, selection(n0 + g), q, low);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    dt[product.part][2 * q + i % 2][product.channel + g + i / 2 * 8] = low[i];
  }
#pragma unroll
  for (float& a : A) a = scaled_A(a);
  __syncthreads();
  const int r = thread / scan_channels;
  float sum = bias;
#pragma unroll
  for (int part = 0; part < dt_parts; ++part) sum += dt[part][r][lane];
  const float delta = softplus(sum);
  deltas[r][lane] = delta;
  inputs[r][lane] = delta * u;
  const float gate = silu_of_scan<T>(z);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < scan_each; ++i) {
    const int row = first_row + i * row_step;
    float y = 0;
#pragma unroll
    for (int k = 0; k < lane_states; ++k) {
      float& state = h[i].at[k];
      state = advance(state, deltas[row][j], A[k], inputs[row][j], to_float(B[i].at[k]));
      y = fmaf(to_float(C[i].at[k]), state, y);
    }
    if (place[i] >= 0) store_vec(op.layer.ssm + place[i], h[i]);
#pragma unroll
    for (int apart = 1; apart < scan_lanes; apart *= 2) {
      y += __shfl_xor_sync(all_lanes, y, apart);
    }
    if (q == 0) sums[row][j] = y;
  }
  __syncthreads();
  if (n0 + r < s.rows) op.y[at] = from_float<T>(fmaf(D, u, sums[r][lane]) * gate);
}

}  // namespace mamba::cuda::rows
