// How the recurrence of Ssd is laid out over threads, in one step (ssd_step.cu) and in many
// (ssd_steps.cu), so that both give the same bits: eight neighbouring lanes hold the states of two
// neighbouring channels of a head, lane l states 4 (l + 8 k) to 4 (l + 8 k) + 3 for every k. A warp
// so reads whole lines of the state. A lane sums its states in order, and lanes that differ in bit
// 0, then 1, then 2 add up their sums.
#pragma once

#include "kernels/gpu/vec.cuh"
#include "kernels/ssd/ssd_operands.cuh"

namespace mamba::cuda {

constexpr int ssd_lanes = 8;  // of a channel

// How a head's channels are cut.
struct SsdStepsCut {
  int tiles, channels;  // of a head; of a tile, a multiple of a warp's eight

  SsdStepsCut(int head_dim, int most_channels) {
    tiles = (head_dim + most_channels - 1) / most_channels;
    channels = ((head_dim + tiles - 1) / tiles + 7) / 8 * 8;
  }
  int threads() const { return channels / 2 * ssd_lanes; }
  // [tiles of all heads][batch rows, in two dimensions, for one takes no more than 65535].
  dim3 grid(const SsdOperands& op) const {
    constexpr std::int64_t most = 65535;
    return {static_cast<unsigned>(op.heads * tiles),
            static_cast<unsigned>(std::min(op.batch, most)),
            static_cast<unsigned>((op.batch + most - 1) / most)};
  }
};

// Four states from `n` on, of d_state. Whole: all exist or none, and they are aligned.
template <bool Whole>
__device__ __forceinline__ Vec<float, 4> load_quad(const float* from, int n, int d_state) {
  Vec<float, 4> quad{};
  if constexpr (Whole) {
    if (n < d_state) quad = load_vec<4>(from + n);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) quad.at[k] = n + k < d_state ? from[n + k] : 0;
  }
  return quad;
}
template <bool Whole>
__device__ __forceinline__ void store_quad(float* to, int n, int d_state,
                                           const Vec<float, 4>& quad) {
  if constexpr (Whole) {
    if (n < d_state) store_vec(to + n, quad);
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (n + k < d_state) to[n + k] = quad.at[k];
    }
  }
}

// The states of a thread, of channels p and p + 1 of a head, where they exist.
template <int Quads, bool Whole>
struct SsdChannels {
  Vec<float, 4> h[2][Quads];

  __device__ __forceinline__ static int state_of(int lane, int quad) {
    return 4 * (lane + ssd_lanes * quad);
  }
  // `from`: of the first channel.
  __device__ __forceinline__ void load(const SsdOperands& op, const float* from, int p, int lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int k = 0; k < Quads; ++k) {
        h[c][k] = p + c < op.head_dim
                      ? load_quad<Whole>(from + c * op.d_state, state_of(lane, k), op.d_state)
                      : Vec<float, 4>{};
      }
    }
  }
  __device__ __forceinline__ void store(const SsdOperands& op, float* to, int p, int lane) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (p + c >= op.head_dim) continue;
#pragma unroll
      for (int k = 0; k < Quads; ++k) {
        store_quad<Whole>(to + c * op.d_state, state_of(lane, k), op.d_state, h[c][k]);
      }
    }
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int k = 0; k < Quads; ++k) h[c][k] = {};
    }
  }
  // One step of states `quad`, with delta x of both channels; sum is this thread's part of y.
  __device__ __forceinline__ void advance(int quad, float decay, const float (&in)[2],
                                          const float (&B)[4], const float (&C)[4],
                                          float (&sum)[2]) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& state = h[c][quad].at[i];
        state = __fmaf_rn(decay, state, __fmul_rn(in[c], B[i]));
        const bool begins = quad == 0 && i == 0;
        sum[c] = begins ? __fmul_rn(C[i], state) : __fmaf_rn(C[i], state, sum[c]);
      }
    }
  }
};

// Whether states can be taken four at a time.
inline bool ssd_in_whole_quads(const Ssd& op) {
  const auto fits = [](const ConstTensorView& view) {
    return !view || is_aligned(view.data(), view.row_pitch() * 4, 16);
  };
  const bool steps_fit = !op.step_states || op.step_states.step_pitch() % 4 == 0;
  return op.B.dim(2) / op.groups % 4 == 0 && fits(op.initial_state) && fits(op.final_state) &&
         fits(op.chunk_states) && fits(op.step_states) && steps_fit;
}

// f(quads of a lane as a constant).
template <class F>
void with_ssd_quads(const Ssd& op, F f) {
  const std::int64_t d_state = op.B.dim(2) / op.groups;
  if (d_state <= 32) return f(std::integral_constant<int, 1>());
  if (d_state <= 64) return f(std::integral_constant<int, 2>());
  if (d_state <= 128) return f(std::integral_constant<int, 4>());
  return f(std::integral_constant<int, 8>());
}

}  // namespace mamba::cuda
