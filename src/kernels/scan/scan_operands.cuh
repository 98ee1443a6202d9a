// A SelectiveScan as kernels see it: raw pointers and pitches, passed by value.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include <mamba/error.hpp>
#include <mamba/ops.hpp>

#include "detail/scan_decays.hpp"
#include "detail/stream_access.hpp"
#include "kernels/gpu/state_row.cuh"
#include "kernels/gpu/track.cuh"
#include "kernels/gpu/vec.cuh"
#include "kernels/scan/scan_math.cuh"

namespace mamba::cuda {

constexpr int scan_chunk = 16;  // steps, in the chunked plan and between the states in chunk_states

// A track whose bytes between steps kernels count in 32 bits.
struct ScanTrack : Track {
  ScanTrack() = default;
  explicit ScanTrack(const ConstTensorView& view) : Track(view) {
    if (!view) return;
    const std::int64_t bytes = step_pitch * size_of(view.dtype());
    if (view.dim(1) > 1 && bytes >> 32 != 0) {
      throw ArgumentError("selective_scan", "bytes between steps", "less than 4 GiB",
                          std::to_string(bytes));
    }
  }
};

// Whether every step of [batch, time, ...] begins at a multiple of `bytes`.
inline bool steps_are_aligned(const ConstTensorView& view, std::int64_t bytes) {
  const std::int64_t size = size_of(view.dtype());
  return is_aligned(view.data(), view.row_pitch() * size, bytes) &&
         view.step_pitch() * size % bytes == 0;
}

// Whether rows of channels are whole 16-byte pieces wherever a tile begins.
inline bool are_wide(std::initializer_list<ConstTensorView> views) {
  return std::all_of(views.begin(), views.end(), [](const ConstTensorView& view) {
    return !view || steps_are_aligned(view, 16);
  });
}

// log2 of the bytes in which B and C can be copied: 4 (16 bytes) to 1 (lone 16-bit elements). They
// are slices of a projection, behind dt_rank columns, so they are often not aligned to 16.
template <class Op>
int copy_bits_of_states(const Op& op) {
  int bits = 4;
  for (const ConstTensorView* view : {&op.B, &op.C}) {
    while ((std::int64_t{1} << bits) > size_of(view->dtype()) &&
           !steps_are_aligned(*view, std::int64_t{1} << bits)) {
      --bits;
    }
  }
  return bits;
}

struct ScanOperands {
  std::int64_t batch, time;
  int channels, d_state;
  ScanTrack x, dt, B, C, z, y, step_states;  // z and step_states may be absent
  const void* dt_weight;                     // [channels, dt_rank], or absent
  std::int64_t dt_weight_pitch;
  int dt_rank;
  bool dt_in_quads;  // dt and dt_weight may be read four at a time
  const float* A;    // or A_log, as `form` says
  std::int64_t A_pitch;
  ScanForm form;
  const float* D;  // these and below may be absent
  const float* dt_bias;
  const std::int32_t* reset;
  std::int64_t reset_pitch;
  const float* initial;
  float* final_state;
  const std::int32_t *read, *write;
  std::int64_t state_rows;
  int* flag;            // the stream's error flag, set when a row is outside the state
  bool wide;            // see are_wide
  int copy_bits;        // see copy_bits_of_states
  float* chunk_states;  // [batch, chunks, channels, d_state], or absent

  ScanOperands(const SelectiveScan& op, Stream& stream)
      : batch(op.x.dim(0)),
        time(op.x.dim(1)),
        channels(static_cast<int>(op.x.dim(2))),
        d_state(static_cast<int>(detail::d_state_of(op))),
        x(op.x),
        dt(op.dt),
        B(op.B),
        C(op.C),
        z(op.z),
        y(op.y),
        step_states(op.step_states),
        dt_weight(op.dt_weight ? op.dt_weight.data() : nullptr),
        dt_weight_pitch(op.dt_weight ? op.dt_weight.row_pitch() : 0),
        dt_rank(static_cast<int>(op.dt.dim(2))),
        dt_in_quads(
            op.dt_weight && dt_rank % 4 == 0 &&
            is_aligned(op.dt.data(), op.dt.row_pitch() * size_of(op.dt.dtype()), 16) &&
            is_aligned(op.dt_weight.data(), op.dt_weight.row_pitch() * size_of(op.dt.dtype()), 16)),
        A(detail::decays_of(op).data<float>()),
        A_pitch(detail::decays_of(op).row_pitch()),
        form{static_cast<bool>(op.A_log), op.softplus},
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
        wide(are_wide({op.x, op.dt, op.z, op.y})),
        copy_bits(copy_bits_of_states(op)),
        chunk_states(op.chunk_states ? op.chunk_states.data<float>() : nullptr) {}

  // Of scan_chunk steps each.
  __device__ std::int64_t chunks() const { return (time + scan_chunk - 1) / scan_chunk; }

  __device__ StateRow<> rows(std::int64_t b) const {
    if (read == nullptr) return {b, b, false, false};
    const std::int64_t from = read[b], to = write[b];
    return {from, to, from < 0 && to < 0, from >= state_rows || to >= state_rows};
  }
  // Where the state of channel c of state row `row` begins.
  __device__ std::int64_t state(std::int64_t row, std::int64_t c) const {
    return (row * channels + c) * d_state;
  }
};

}  // namespace mamba::cuda
