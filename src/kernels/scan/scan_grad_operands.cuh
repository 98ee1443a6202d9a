// A SelectiveScanGrad as its kernel sees it: raw pointers and pitches, passed by value.
#pragma once

#include <cstdint>

#include <mamba/grad_ops.hpp>

#include "kernels/scan/scan_operands.cuh"

namespace mamba::cuda {

struct ScanGradOperands {
  std::int64_t batch, time;
  int channels, d_state, copy_bits;
  bool wide;                                     // see are_wide
  ScanTrack x, dt, B, C, z, dy, dx, ddt, dz, y;  // z and dz, and y may be absent
  const float* A;                                // or A_log, as `form` says
  std::int64_t A_pitch;
  ScanForm form;
  const float *D, *dt_bias;  // these and reset may be absent
  const std::int32_t* reset;
  std::int64_t reset_pitch;
  const float *chunk_states, *dfinal;  // dfinal and dinitial may be absent
  float* dinitial;
  float* dBC;   // [channel blocks, batch, chunks of 16 steps, d_state, 2, 16]
  float* sums;  // [batch, channels, d_state + 2]: of dA or dA_log, dD, ddt_bias

  explicit ScanGradOperands(const SelectiveScanGrad& op)
      : batch(op.x.dim(0)),
        time(op.x.dim(1)),
        channels(static_cast<int>(op.x.dim(2))),
        d_state(static_cast<int>(detail::d_state_of(op))),
        copy_bits(copy_bits_of_states(op)),
        wide(are_wide({op.x, op.dt, op.z, op.dy, op.dx, op.ddt, op.dz, op.y})),
        x(op.x),
        dt(op.dt),
        B(op.B),
        C(op.C),
        z(op.z),
        dy(op.dy),
        dx(op.dx),
        ddt(op.ddt),
        dz(op.dz),
        y(op.y),
        A(detail::decays_of(op).data<float>()),
        A_pitch(detail::decays_of(op).row_pitch()),
        form{static_cast<bool>(op.A_log), op.softplus},
        D(op.D ? op.D.data<float>() : nullptr),
        dt_bias(op.dt_bias ? op.dt_bias.data<float>() : nullptr),
        reset(op.reset ? op.reset.data<std::int32_t>() : nullptr),
        reset_pitch(op.reset ? op.reset.row_pitch() : 0),
        chunk_states(op.chunk_states.data<float>()),
        dfinal(op.dfinal_state ? op.dfinal_state.data<float>() : nullptr),
        dinitial(op.dinitial_state ? op.dinitial_state.data<float>() : nullptr) {}

  // Of scan_chunk steps each.
  __device__ __forceinline__ std::int64_t chunks() const {
    return (time + scan_chunk - 1) / scan_chunk;
  }
  // Where the state of channel c of row `row` begins.
  __device__ __forceinline__ std::int64_t state(std::int64_t row, int c) const {
    return (row * channels + c) * d_state;
  }
};

}  // namespace mamba::cuda
