// What the rings of warps of scan_chunked.cu and scan_grad_ring.cuh are made of: how a state goes
// from warp to warp, how the chunks of a warp are joined, where resets lie, and B and C with time
// innermost.
#pragma once

#include "kernels/scan/scan_copy.cuh"
#include "kernels/scan/scan_math.cuh"

namespace mamba::cuda {

constexpr int ring_states = 16;  // whose B and C a warp keeps in shared memory

// The state that one warp hands to the next: eight bytes, written and read at once.
struct Passed {
  float h;
  int round;
};
__device__ __forceinline__ void pass(Passed* to, Passed value) {
  store_tagged(to, value.h, value.round);
}
__device__ __forceinline__ Passed look(const Passed* from) {
  Passed value;
  load_tagged(from, value.h, value.round);
  return value;
}
// Until every lane has seen the round's state, of which `seen` is a first look.
__device__ __forceinline__ float wait_for(const Passed* from, Passed seen, int round) {
  while (__any_sync(all_lanes, seen.round != round)) {
    __nanosleep(40);  // else a warp that waits takes turns from those that work
    seen = look(from);
  }
  return seen.h;
}

// The map h -> P h + h of this lane's chunks after that of the lane `apart` before it (behind it,
// in a scan against time), where there is one and no cut between.
template <bool Cuts, bool Against>
__device__ __forceinline__ void join_neighbour(int apart, bool cut, float& P, float& h) {
  if constexpr (Cuts || Against) {
    const float P_other =
        Against ? __shfl_down_sync(all_lanes, P, apart) : __shfl_up_sync(all_lanes, P, apart);
    const float h_other =
        Against ? __shfl_down_sync(all_lanes, h, apart) : __shfl_up_sync(all_lanes, h, apart);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if ((Against ? lane + apart > 31 : lane < apart) || cut) return;
    h = __fmaf_rn(P, h_other, h);
    P = __fmul_rn(P, P_other);
  } else {
    join_lane_before(apart, P, h);
  }
}

// The resets in a warp's tile of `Steps` steps; in shared memory, for where they are wanted no
// register is left. Most tiles have none, and their steps need not look.
template <int Steps, bool Against>
struct alignas(16) RingResets {
  static constexpr int chunks = Steps / scan_chunk;
  std::int32_t flags[Steps];  // as they come
  // Of a chunk. Bit k: step k of it is a reset. Bit 16 + s: there is one in the 2^s chunks that end
  // with it (that begin with it, in a scan against time).
  unsigned cuts[chunks];

  __device__ __forceinline__ void copy(const std::int32_t* reset, int steps) {
    for (int t = static_cast<int>(threadIdx.x) % 32; t < Steps; t += 32) {
      copy_bytes<4>(&flags[t], t < steps ? reset + t : reset, t < steps ? 4 : 0);
    }
  }
  // Without any, to begin with.
  __device__ __forceinline__ void clear() {
    if (threadIdx.x % 32 < chunks) cuts[threadIdx.x % 32] = 0;
  }
  // When the flags have come; every lane.
  __device__ __forceinline__ void find() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    unsigned found[chunks];
#pragma unroll
    for (int q = 0; q < chunks; ++q) {
      const bool here = flags[q * scan_chunk + lane % scan_chunk] != 0;
      found[q] = __ballot_sync(all_lanes, lane < scan_chunk && here);
    }
#pragma unroll
    for (int q = 0; q < chunks; ++q) {
      unsigned word = found[q];
#pragma unroll
      for (int stage = 0; 1 << stage <= chunks; ++stage) {
#pragma unroll
        for (int i = 0; i < 1 << stage; ++i) {
          const int other = Against ? q + i : q - i;
          if (other < 0 || other >= chunks) break;
          if (found[other] != 0) word |= 1u << (scan_chunk + stage);
        }
      }
      if (lane == 0) cuts[q] = word;
    }
  }
  // The same answer for every lane.
  __device__ __forceinline__ bool any() const {
    return cuts[Against ? 0 : chunks - 1] >> scan_chunk != 0;
  }
};

// B and C of a warp's tile of `Steps` steps. In f32 four words follow each chunk, so that what the
// chunks of a warp read together lies in different banks. Later takes the place of what came, once
// it is turned.
template <class T, int Steps, class Later = char>
struct RingStates {
  static constexpr int line = Steps / scan_chunk * (scan_chunk + 4);
  union {
    alignas(16) T raw[2][Steps][ring_states];  // as they come
    Later later;
  };
  float turned[2][ring_states][line];

  __device__ __forceinline__ void copy(const ScanTile& B, const ScanTile& C, int bits) {
    copy_states_tile<32, Steps, ring_states>(B, &raw[0][0][0], bits);
    copy_states_tile<32, Steps, ring_states>(C, &raw[1][0][0], bits);
  }
  // A lane takes eight states of a step.
  __device__ __forceinline__ void turn() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 2
    for (int i = 0; i < 4 * Steps; i += 32) {
      const int t = (i + lane) % Steps, half = (i + lane) / Steps % 2 * 8;
      const int which = (i + lane) / (2 * Steps);
      float* to = &turned[which][half][t + t / scan_chunk * 4];
      constexpr int in_piece = 16 / static_cast<int>(sizeof(T));
#pragma unroll
      for (int k = 0; k < 8; k += in_piece) {
        const auto piece = load_vec<in_piece>(&raw[which][t][half + k]);
#pragma unroll
        for (int j = 0; j < in_piece; ++j) to[(k + j) * line] = to_float(piece.at[j]);
      }
    }
  }
};

}  // namespace mamba::cuda
