// A channel in a step of a stack: its convolution and its scan, one step on.
#pragma once

#include <cstdint>

#include "kernels/scan/scan_math.cuh"
#include "kernels/step/stack_plan.cuh"

namespace mamba::cuda::stack {

constexpr int most_dt_rank = 192;
constexpr int channel_lanes = 8;                        // of a channel in the scan
constexpr int lane_states = d_state / channel_lanes;    // lane p has states from p lane_states on
constexpr int most_channels = threads / channel_lanes;  // of a block

// What a channel's convolution needs beside its product.
struct Filter {
  Vec<float, d_conv> weight;
  float bias;
  T before[past];
  int write;  // the state row

  // Of channel c in batch row n.
  __device__ __forceinline__ void load(const Mamba1StepSizes& s, const Mamba1Step::Block& layer,
                                       int n, int c) {
    const StateRow<int> row = state_row(s, n);
    write = row.write;
    weight = load_vec<d_conv>(layer.conv_weight + c * d_conv);
    bias = layer.conv_bias != nullptr ? layer.conv_bias[c] : 0;
    const T* from =
        static_cast<const T*>(layer.conv) + (std::int64_t{max(row.read, 0)} * s.d_inner + c) * past;
#pragma unroll
    for (int k = 0; k < past; ++k) before[k] = row.read < 0 ? T{} : from[k];
  }
  // What the channel hands to the scan.
  __device__ __forceinline__ float convolve(T x) const {
    float sum = bias;
#pragma unroll
    for (int k = 0; k < past; ++k) sum = fmaf(weight.at[k], to_float(before[k]), sum);
    return silu_approx(fmaf(weight.at[past], to_float(x), sum));
  }
  // The state after x.
  __device__ __forceinline__ void store(const Mamba1StepSizes& s, const Mamba1Step::Block& layer,
                                        int c, T x) const {
    if (write < 0) return;
    T* to = static_cast<T*>(layer.conv) + (std::int64_t{write} * s.d_inner + c) * past;
#pragma unroll
    for (int k = 0; k + 1 < past; ++k) to[k] = before[k + 1];
    to[past - 1] = x;
  }
};

// What lane p of a channel's lanes has of its scan: some states, and pairs p, p + channel_lanes,
// ... of dt_proj's inputs. load() comes before u is there.
struct Channel {
  static constexpr int dt_step = 2 * channel_lanes;
  std::uint32_t dt_weight[most_dt_rank / dt_step];
  float A[lane_states], D, dt_bias;
  Vec<float, lane_states> h;
  int write;  // the state row

  static __device__ __forceinline__ std::int64_t place(const Mamba1Step& s, int row, int c, int p) {
    return (std::int64_t{row} * s.d_inner + c) * d_state + p * lane_states;
  }
  // Of channel c in batch row n.
  __device__ __forceinline__ void load_state(const Mamba1Step& s, const Mamba1Step::Block& layer,
                                             int n, int c, int p) {
    const StateRow<int> row = state_row(s, n);
    write = row.write;
    h = {};
    if (row.read >= 0) h = load_vec<lane_states>(layer.ssm + place(s, row.read, c, p));
  }
  // In batch row 0; A as it is stored.
  __device__ __forceinline__ void load(const Mamba1Step& s, const Mamba1Step::Block& layer, int c,
                                       int p) {
    const T* weight = static_cast<const T*>(layer.dt_proj) + std::int64_t{c} * s.dt_rank + 2 * p;
#pragma unroll
    for (int i = 0; i < most_dt_rank / dt_step; ++i) {
      dt_weight[i] = dt_step * i < s.dt_rank
                         ? *reinterpret_cast<const std::uint32_t*>(weight + dt_step * i)
                         : 0;
    }
    load_floats<lane_states>(layer.A_log + place(s, 0, c, p), A);
    D = layer.D[c];
    dt_bias = layer.dt_bias[c];
    load_state(s, layer, 0, c, p);
  }
};

}  // namespace mamba::cuda::stack
