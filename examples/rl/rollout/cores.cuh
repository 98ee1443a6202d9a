// The controllers inside the rollout kernel: a block steps one environment's memory, whose weights
// and state stay in registers. Eight threads to a unit of the width; at the end of a step all
// eight know what their unit says.
//
// A step is begin(), a barrier, step(): between them `encoded` is written.
#pragma once

#include "rl/gru/block_math.cuh"
#include "rl/gru/gru_math.cuh"

namespace mamba_rl::cuda {

struct GruOperands {
  const float *weight_ih, *weight_hh, *bias_ih, *bias_hh;
  float* h;  // [batch, width]
};

template <int width_>
class GruCore {
 public:
  using Operands = GruOperands;
  static constexpr int width = width_;
  static constexpr int threads = 8 * width;
  struct Shared {
    alignas(16) float h[width];
  };

  __device__ GruCore(const GruOperands& operands, std::int64_t b, Shared& shared)
      : unit_(static_cast<int>(threadIdx.x) / 8), shared_(shared) {
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      input_[gate].load(operands.weight_ih + gate * width * width);
      recurrence_[gate].load(operands.weight_hh + gate * width * width);
      input_bias_[gate] = operands.bias_ih[gate * width + unit_];
      bias_[gate] = operands.bias_hh[gate * width + unit_];
    }
    h_ = operands.h[b * width + unit_];
  }

  __device__ void begin(bool begins) {
    if (begins) h_ = 0;
    if (threadIdx.x % 8 == 0) shared_.h[unit_] = h_;
  }
  __device__ float step(const float* encoded) {
    float i[3], g[3];
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      i[gate] = input_[gate].times(encoded) + input_bias_[gate];
      g[gate] = recurrence_[gate].times(shared_.h) + bias_[gate];
    }
    h_ = gru_unit(i[0] + g[0], i[1] + g[1], i[2], g[2]).next(h_);
    return h_;
  }
  __device__ void save(const GruOperands& operands, std::int64_t b) const {
    if (threadIdx.x % 8 == 0) operands.h[b * width + unit_] = h_;
  }

 private:
  using Matrix = RegisterMatrix<width, width, threads>;
  int unit_;
  Shared& shared_;
  Matrix input_[3], recurrence_[3];
  float input_bias_[3], bias_[3];
  float h_;
};

struct MambaOperands {
  const float *in_proj, *conv_weight, *x_proj, *dt_proj, *dt_bias, *A_log, *D, *out_proj;
  const float* conv_bias;                // may be nullptr
  const float *norm_weight, *norm_bias;  // with gated_norm, else nullptr
  bool norm_dt_b_c;
  float norm_dt_b_c_epsilon, gated_norm_epsilon;
  float *conv, *ssm;  // [batch, d_inner, d_conv - 1], [batch, d_inner, d_state]
};

// One layer of the published sizes. Four threads have a channel, each of them four of its states.
template <int width_>
class MambaCore {
 public:
  using Operands = MambaOperands;
  static constexpr int width = width_;
  static constexpr int threads = 8 * width;
  static constexpr int d_inner = 2 * width, d_state = 16, d_conv = 4, dt_rank = width / 16;
  static constexpr int selected = dt_rank + 2 * d_state;
  struct Shared {
    alignas(16) float xz[2 * d_inner];
    alignas(16) float u[d_inner];
    alignas(16) float gated[d_inner];
    float selection[selected];
    float parts[2][threads / warp];
  };

  __device__ MambaCore(const MambaOperands& operands, std::int64_t b, Shared& shared)
      : operands_(operands),
        shared_(shared),
        channel_(static_cast<int>(threadIdx.x) / quarters),
        quarter_(static_cast<int>(threadIdx.x) % quarters) {
    in_proj_.load(operands.in_proj);
    x_proj_.load(operands.x_proj);
    out_proj_.load(operands.out_proj);
    tap_ = operands.conv_weight[channel_ * d_conv + quarter_];
    input_ = quarter_ < d_conv - 1 ? operands.conv[conv_place(b)] : 0;
    dt_proj_ = quarter_ < dt_rank ? operands.dt_proj[channel_ * dt_rank + quarter_] : 0;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      const int state = quarter_ * own + n;
      A_[n] = -expf(operands.A_log[channel_ * d_state + state]);
      h_[n] = operands.ssm[(b * d_inner + channel_) * d_state + state];
    }
  }

  __device__ void begin(bool begins) {
    if (!begins) return;
    input_ = 0;
#pragma unroll
    for (int n = 0; n < own; ++n) h_[n] = 0;
  }

  __device__ float step(const float* encoded) {
    const float projected = in_proj_.times(encoded);
    if (in_proj_.lane() == 0) shared_.xz[in_proj_.row()] = projected;
    __syncthreads();
    const float u = convolve(shared_.xz[channel_]);
    if (quarter_ == 0) shared_.u[channel_] = u;
    __syncthreads();
    const float selected_value = x_proj_.times(shared_.u);
    if (x_proj_.lane() == 0 && x_proj_.row() < selected) {
      shared_.selection[x_proj_.row()] = selected_value;
    }
    __syncthreads();
    float y = scan(u);
    if (operands_.norm_weight != nullptr) {
      y = block_normalise<threads, quarters>(y, operands_.gated_norm_epsilon, shared_.parts);
      y = fmaf(y, operands_.norm_weight[channel_], operands_.norm_bias[channel_]);
    }
    const float z = shared_.xz[d_inner + channel_];
    if (quarter_ == 0) shared_.gated[channel_] = y * z * gate(z);
    __syncthreads();
    return encoded[out_proj_.row()] + out_proj_.times(shared_.gated);
  }

  __device__ void save(const MambaOperands& operands, std::int64_t b) const {
    if (quarter_ < d_conv - 1) operands.conv[conv_place(b)] = input_;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      operands.ssm[(b * d_inner + channel_) * d_state + quarter_ * own + n] = h_[n];
    }
  }

 private:
  static constexpr int quarters = threads / d_inner;
  static constexpr int own = d_state / quarters;
  static_assert(d_conv == quarters, "a channel's threads have a tap each");
  static_assert(dt_rank <= quarters, "a channel's threads have a number of dt each");

  __device__ std::int64_t conv_place(std::int64_t b) const {
    return (b * d_inner + channel_) * (d_conv - 1) + quarter_;
  }

  // Each of a channel's threads has one tap, and the input that it meets at the next step.
  __device__ float convolve(float x) {
    if (quarter_ == d_conv - 1) input_ = x;
    const float bias = operands_.conv_bias != nullptr ? operands_.conv_bias[channel_] : 0;
    const float sum = sum_over<quarters>(tap_ * input_) + bias;
    input_ = __shfl_down_sync(all_lanes, input_, 1, quarters);
    return sum * gate(sum);
  }

  // 1 / the root of the mean square, whose sum over this thread's share is given.
  __device__ float rms_scale(float squares, float count) const {
    return 1 / sqrtf(sum_over<quarters>(squares) / count + operands_.norm_dt_b_c_epsilon);
  }

  __device__ float scan(float u) {
    float B[own], C[own];
    const float* selection = shared_.selection;
    float dt = quarter_ < dt_rank ? selection[quarter_] : 0;
    float B_squares = 0, C_squares = 0;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      B[n] = selection[dt_rank + quarter_ * own + n];
      C[n] = selection[dt_rank + d_state + quarter_ * own + n];
      B_squares = fmaf(B[n], B[n], B_squares);
      C_squares = fmaf(C[n], C[n], C_squares);
    }
    float B_scale = 1, C_scale = 1;
    if (operands_.norm_dt_b_c) {
      dt *= rms_scale(dt * dt, dt_rank);
      B_scale = rms_scale(B_squares, d_state);
      C_scale = rms_scale(C_squares, d_state);
    }
    const float v = sum_over<quarters>(dt_proj_ * dt) + operands_.dt_bias[channel_];
    const float delta = v > 20 ? v : log1pf(expf(v));
    float y = 0;
#pragma unroll
    for (int n = 0; n < own; ++n) {
      h_[n] = fmaf(expf(delta * A_[n]), h_[n], delta * (B[n] * B_scale) * u);
      y = fmaf(C[n] * C_scale, h_[n], y);
    }
    return fmaf(operands_.D[channel_], u, sum_over<quarters>(y));
  }

  const MambaOperands& operands_;
  Shared& shared_;
  int channel_, quarter_;
  RegisterMatrix<2 * d_inner, width, threads> in_proj_;
  RegisterMatrix<selected, d_inner, threads> x_proj_;
  RegisterMatrix<width, d_inner, threads> out_proj_;
  float tap_, input_;
  float dt_proj_;
  float A_[own], h_[own];
};

}  // namespace mamba_rl::cuda
