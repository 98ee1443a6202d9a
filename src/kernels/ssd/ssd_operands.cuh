// An Ssd as kernels see it: raw pointers and pitches, passed by value.
#pragma once

#include <cstdint>
#include <type_traits>

#include <mamba/ops.hpp>

#include "detail/stream_access.hpp"
#include "kernels/gpu/state_row.cuh"
#include "kernels/gpu/track.cuh"
#include "kernels/scan/scan_math.cuh"

namespace mamba::cuda {

constexpr int ssd_chunk = 64;  // steps

// The numbers of states that kernels for the tensor cores and for a stack's step know, and f(such a
// number as a constant).
inline bool ssd_knows_states(std::int64_t d_state) {
  return d_state == 64 || d_state == 128 || d_state == 256;
}
template <class F>
auto with_ssd_states(std::int64_t d_state, F f) {
  if (d_state == 64) return f(std::integral_constant<int, 64>());
  if (d_state == 128) return f(std::integral_constant<int, 128>());
  return f(std::integral_constant<int, 256>());
}

// softplus(dt) between its limits; a NaN stays one.
__device__ __forceinline__ float ssd_limited(float step, const float& low, const float& high) {
  const float above = step < low ? low : step;
  return above > high ? high : above;
}

struct SsdOperands {
  std::int64_t batch, time;
  int heads, head_dim, d_state, group_heads;
  Track x, dt, B, C, y, step_states;  // step_states may be absent
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
  __device__ float delta(float dt, float bias) const {
    const float v = __fadd_rn(dt, bias);
    return ssd_limited(softplus ? mamba::cuda::softplus(v) : v, dt_low, dt_high);
  }
};

}  // namespace mamba::cuda
