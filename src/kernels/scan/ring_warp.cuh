// A warp of a ring (see scan_chunked.cu): its place among the block's, what its lanes have, and how
// tiles of the operands come to shared memory and go back.
#pragma once

#include "kernels/scan/scan_copy.cuh"
#include "kernels/scan/scan_math.cuh"
#include "kernels/scan/scan_operands.cuh"
#include "kernels/scan/scan_ring.cuh"

namespace mamba::cuda {

// How a warp of `Channels` channels takes time. An empty row of channels follows each chunk, so
// that what the chunks of a warp read together lies in different banks.
template <int Channels>
struct RingTile {
  static constexpr int chunks = 32 / Channels, steps = chunks * scan_chunk, rows = steps + chunks;
};

// Memory: what lies in shared memory for one warp, BC and resets among it. Behind that of all warps
// lie the slots of the ring and A.
template <class T, int Channels, class Operands, class Memory>
struct RingWarp {
  static constexpr int chunks = RingTile<Channels>::chunks, steps = RingTile<Channels>::steps;
  static constexpr int rows = RingTile<Channels>::rows;

  const Operands& op;
  Memory* memory;     // this warp's
  Passed *from, *to;  // [d_state, Channels], at this lane's channel
  float* A;           // [d_state, Channels], at this lane's channel: A log2(e)
  int warp, lane, q;  // q: this lane's chunk among the warp's
  int b, block_channel;

  static int ring_bytes(int warps, int d_state) {
    return warps * static_cast<int>(sizeof(Memory)) +
           d_state * Channels *
               (warps * static_cast<int>(sizeof(Passed)) + static_cast<int>(sizeof(float)));
  }
  // Behind all that.
  __device__ __forceinline__ float* rest() const {
    return A - lane % Channels + op.d_state * Channels;
  }

  __device__ __forceinline__ RingWarp(const Operands& operands, char* shared) : op(operands) {
    const int blocks = (op.channels + Channels - 1) / Channels;
    // A shuffle says that it is the warp's, so that what follows from it takes no vector registers.
    warp = __shfl_sync(all_lanes, static_cast<int>(threadIdx.x) / 32, 0);
    lane = static_cast<int>(threadIdx.x) % 32;
    q = lane / Channels;
    b = static_cast<int>(blockIdx.x / blocks);
    block_channel = static_cast<int>(blockIdx.x % blocks) * Channels;
    memory = reinterpret_cast<Memory*>(shared) + warp;
    auto* ring = reinterpret_cast<Passed*>(shared + warps() * sizeof(Memory));
    const int slots = op.d_state * Channels;
    A = reinterpret_cast<float*>(ring + warps() * slots) + lane % Channels;
    ring += lane % Channels;
    from = ring + warp * slots;
    to = ring + (warp + 1 == warps() ? 0 : warp + 1) * slots;
  }

  // Of the block.
  __device__ __forceinline__ static int warps() { return static_cast<int>(blockDim.x) / 32; }
  // This lane's channel, and whether there is one: if not, the last one's work is done again.
  __device__ __forceinline__ bool works() const {
    return block_channel + lane % Channels < op.channels;
  }
  __device__ __forceinline__ int channel() const {
    return min(block_channel + lane % Channels, op.channels - 1);
  }
  __device__ __forceinline__ float bias() const {
    return op.dt_bias != nullptr ? op.dt_bias[channel()] : 0;
  }
  template <bool Grows>
  __device__ __forceinline__ void load_A() const {
    const float* given = op.A + channel() * op.A_pitch;
    for (int n = warp * chunks + q; n < op.d_state; n += warps() * chunks) {
      A[n * Channels] = op.form.template scaled<Grows>(given[n]);
    }
  }

  // Tiles of the sequence, and the round in which the warp after the last one would have its turn.
  __device__ __forceinline__ int tiles() const {
    return static_cast<int>((op.time + steps - 1) / steps);
  }
  __device__ __forceinline__ int rounds() const { return tiles() / warps(); }
  __device__ __forceinline__ bool is_after_the_last() const { return tiles() % warps() == warp; }
  // What the warp before this one passes on for state n in `round`.
  __device__ __forceinline__ float passed(int n, int round) const {
    Passed value;
    do value = look(from + n * Channels);
    while (value.round != round);
    return value.h;
  }
  // Of this warp's next states, for the warp after it.
  __device__ __forceinline__ int round_after(int round) const {
    return round + (warp + 1 == warps() ? 1 : 0);
  }

  // Steps of the sequence in a tile, and from the first of this lane's chunk on.
  __device__ __forceinline__ int steps_of(int tile) const {
    const std::int64_t left = op.time - std::int64_t{tile} * steps;
    return static_cast<int>(max(min(left, std::int64_t{steps}), std::int64_t{0}));
  }
  __device__ __forceinline__ int left_in(int tile) const { return steps_of(tile) - q * scan_chunk; }

  __device__ __forceinline__ ScanTile channels_of(const ScanTrack& track, int tile) const {
    return ScanTile::of<T>(track, b, std::int64_t{tile} * steps, steps_of(tile), block_channel,
                           op.channels - block_channel);
  }
  // Begins to copy a tile of an operand, its resets, or B and C of some states from `n` on.
  __device__ __forceinline__ void copy_channels(const ScanTrack& track, int tile,
                                                T (&to_rows)[rows][Channels]) const {
    const ScanTile tile_of = channels_of(track, tile);
    T* first = &to_rows[0][0];
    op.wide ? copy_tile<true, 32, steps, Channels, scan_chunk>(tile_of, first, Channels)
            : copy_tile<false, 32, steps, Channels, scan_chunk>(tile_of, first, Channels);
  }
  __device__ __forceinline__ void copy_resets(int tile) const {
    if (op.reset == nullptr) return;
    memory->resets.copy(op.reset + b * op.reset_pitch + std::int64_t{tile} * steps, steps_of(tile));
  }
  __device__ __forceinline__ void copy_BC(int tile, int n) const {
    const auto tile_of = [&](const ScanTrack& track) {
      return ScanTile::of<T>(track, b, std::int64_t{tile} * steps, steps_of(tile), n,
                             op.d_state - n);
    };
    memory->BC.copy(tile_of(op.B), tile_of(op.C), op.copy_bits);
  }
  // The way back.
  __device__ __forceinline__ void store_channels(const T (&from_rows)[rows][Channels],
                                                 const ScanTrack& track, int tile) const {
    const ScanTile tile_of = channels_of(track, tile);
    const T* first = &from_rows[0][0];
    op.wide ? store_tile<true, 32, steps, Channels, scan_chunk>(first, Channels, tile_of)
            : store_tile<false, 32, steps, Channels, scan_chunk>(first, Channels, tile_of);
  }

  // This lane's column of its chunk.
  __device__ __forceinline__ T* mine(T (&of)[rows][Channels]) const {
    return &of[q * (scan_chunk + 1)][0] + lane % Channels;
  }
  // The resets of this lane's chunk (see RingResets); looked up again wherever they are wanted, for
  // there is no register left.
  template <bool Careful>
  __device__ __forceinline__ unsigned cuts() const {
    return Careful ? *const_cast<const volatile unsigned*>(&memory->resets.cuts[q]) : 0;
  }
};

}  // namespace mamba::cuda
