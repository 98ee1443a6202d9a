// An Ssd as kernels see it: raw pointers and pitches, passed by value.
#pragma once

#include <cstdint>

#include <mamba/ops.hpp>

#include "detail/stream_access.hpp"
#include "kernels/gpu/state_row.cuh"
#include "kernels/scan/scan_math.cuh"

namespace mamba::cuda {

// [batch, time, ...] with contiguous last dimensions; pitches in elements.
struct SsdTrack {
  const void* data = nullptr;
  std::int64_t row_pitch = 0, step_pitch = 0;

  SsdTrack() = default;
  explicit SsdTrack(const ConstTensorView& view) {
    if (!view) return;
    data = view.data();
    row_pitch = view.row_pitch();
    step_pitch = view.step_pitch();
  }
  template <class T>
  __device__ const T* at(std::int64_t b, std::int64_t t) const {
    return static_cast<const T*>(data) + b * row_pitch + t * step_pitch;
  }
  template <class T>
  __device__ T* out(std::int64_t b, std::int64_t t) const {
    return const_cast<T*>(at<T>(b, t));
  }
};

struct SsdOperands {
  std::int64_t batch, time;
  int heads, head_dim, d_state, group_heads;
  SsdTrack x, dt, B, C, y, step_states;  // step_states may be absent
  const float* A_log;
  const float* D;  // these and below may be absent
  const float* dt_bias;
  const std::int32_t* reset;
  std::int64_t reset_pitch;
  const float* initial;
  float* final_state;
  const std::int32_t *read, *write;
  std::int64_t state_rows;
  int* flag;            // the stream's error flag, set when a row is outside the state
  float* chunk_states;  // [batch, chunks, channels, d_state], or absent
  std::int64_t chunk_steps, chunks;
  bool softplus;
  float dt_low, dt_high;

  SsdOperands(const Ssd& op, Stream& stream)
      : batch(op.x.dim(0)),
        time(op.x.dim(1)),
        heads(static_cast<int>(op.A_log.dim(0))),
        head_dim(static_cast<int>(op.x.dim(2) / op.A_log.dim(0))),
        d_state(static_cast<int>(op.B.dim(2) / op.groups)),
        group_heads(static_cast<int>(op.A_log.dim(0) / op.groups)),
        x(op.x),
        dt(op.dt),
        B(op.B),
        C(op.C),
        y(op.y),
        step_states(op.step_states),
        A_log(op.A_log.data<float>()),
        D(op.D ? op.D.data<float>() : nullptr),
        dt_bias(op.dt_bias ? op.dt_bias.data<float>() : nullptr),
        reset(op.reset ? op.reset.data<std::int32_t>() : nullptr),
        reset_pitch(op.reset ? op.reset.row_pitch() : 0),
        initial(op.initial_state ? op.initial_state.data<float>() : nullptr),
        final_state(op.final_state ? op.final_state.data<float>() : nullptr),
        read(op.rows.read ? op.rows.read.data<std::int32_t>() : nullptr),
        write(op.rows.write ? op.rows.write.data<std::int32_t>() : nullptr),
        state_rows(op.initial_state ? op.initial_state.dim(0)
                   : op.final_state ? op.final_state.dim(0)
                                    : batch),
        flag(StreamAccess::flag(stream, BadValue::state_row)),
        chunk_states(op.chunk_states ? op.chunk_states.data<float>() : nullptr),
        chunk_steps(op.chunk_states ? op.chunk_steps : 0),
        chunks(op.chunk_states ? op.chunk_states.dim(1) : 0),
        softplus(op.softplus),
        dt_low(op.dt_low),
        dt_high(op.dt_high) {}

  __device__ StateRow<> rows(std::int64_t b) const {
    if (read == nullptr) return {b, b, false, false};
    const std::int64_t from = read[b], to = write[b];
    return {from, to, from < 0 && to < 0, from >= state_rows || to >= state_rows};
  }
  __device__ int groups() const { return heads / group_heads; }
  // Where the state of channel p of a head begins, in row `row` of [rows, channels, d_state].
  __device__ std::int64_t state(std::int64_t row, int head, int p) const {
    return ((row * heads + head) * head_dim + p) * d_state;
  }
  __device__ std::int64_t first_state(int group) const { return std::int64_t{group} * d_state; }
  __device__ std::int64_t channel(int head) const { return std::int64_t{head} * head_dim; }

  __device__ bool resets(std::int64_t b, std::int64_t t) const {
    return reset != nullptr && reset[b * reset_pitch + t] != 0;
  }
  // A NaN stays one.
  __device__ float delta(float dt, float bias) const {
    const float v = __fadd_rn(dt, bias);
    const float step = softplus ? mamba::cuda::softplus(v) : v;
    const float above = step < dt_low ? dt_low : step;
    return above > dt_high ? dt_high : above;
  }
};

}  // namespace mamba::cuda
