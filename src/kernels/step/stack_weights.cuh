// The weights of a step of a stack on their way: a ring in shared memory for each thread.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/gpu/ptx.cuh"
#include "kernels/matmul/weight_load.cuh"
#include "kernels/step/stack_plan.cuh"

namespace mamba::cuda::stack {

using Load = DenseLoad<T>;
using Stored = Load::Stored;
static_assert(sizeof(Load::Eight) == 16, "a lane's inputs of a piece take a slot of the ring");

// The weights on their way to one thread: of every tile of 8 rows, row lane / 4, and of every piece
// of its warp 8 inputs from 8 (lane % 4) on, 16 bytes a slot. A thread reads only what it has
// copied itself, so there is no barrier. What counts is not only that memory never rests but how
// fast a block that has had to wait catches up, so a request is a handful of instructions. Bulk
// copies by a warp of their own leave them away and were slower all the same (0.27 ms a token of
// 130m and 2.0 of 2.8b, not 0.22 and 1.73).
template <int Slots>
struct WeightStream {
  const Mamba1Step& step;
  const Mamba1Step::Block* layers;  // in shared memory
  const Shares shares;
  unsigned ring, oldest;  // shared addresses: this thread's first slot, the one that is used next
  int warp, lane;
  int layer = 0, matrix = -1;                   // what is requested next
  int rows = 0, row = 0, inputs = 0, left = 0;  // left: pieces of the tile
  bool there = false;
  const Stored *base = nullptr, *from = nullptr;

  __device__ __forceinline__ WeightStream(const Operands& op, char* memory, int warp_, int lane_)
      : step(op.step),
        layers(reinterpret_cast<const Mamba1Step::Block*>(memory + op.plan.layers)),
        shares(op),
        ring(shared_address(memory) + threadIdx.x * 16),
        oldest(ring),
        warp(warp_),
        lane(lane_) {}

  __device__ __forceinline__ int pieces_of(int of_inputs) const {
    return (of_inputs / piece + warps - 1 - warp) / static_cast<unsigned>(warps);
  }
  __device__ __forceinline__ void next_matrix() {
    do {
      if (++matrix == matrices) {
        matrix = 0;
        ++layer;
      }
      if (layer == step.layer_count) {
        there = false;
        left = INT_MAX;
        return;
      }
      rows = shares.rows(matrix);
      inputs = matrix == in_proj ? step.d_model : step.d_inner;
    } while (rows == 0 || pieces_of(inputs) <= 0);
    const Mamba1Step::Block& weights = layers[layer];
    const void* all = matrix == in_proj  ? weights.in_proj
                      : matrix == x_proj ? weights.x_proj
                                         : weights.out_proj;
    base = static_cast<const Stored*>(all) + warp * piece + lane % 4 * 8;
    row = 0;
    aim();
  }
  // At the tile that begins with `row`.
  __device__ __forceinline__ void aim() {
    const int mine = row + lane / 4, channels = shares.channels.count;
    there = mine < rows;
    int of = mine;
    if (matrix == in_proj) {
      of += shares.channels.first + (mine < channels ? 0 : step.d_inner - channels);
    } else {
      of += matrix == x_proj ? shares.selection.first : shares.outputs.first;
    }
    from = base + std::int64_t{of} * inputs;
    left = pieces_of(inputs);
  }
  // Takes the oldest slot: a group of copies into it, even if there is nothing left.
  __device__ __forceinline__ void request() {
    if (there) copy_16_bytes(oldest, from);
    end_of_copies();
    from += span;
    oldest = next(oldest);
    if (--left == 0) {
      row += tile;
      row < rows ? aim() : next_matrix();
    }
  }
  __device__ __forceinline__ unsigned next(unsigned slot) const {
    return slot + unit == ring + Slots * unit ? ring : slot + unit;
  }
  __device__ __forceinline__ void begin() {
    next_matrix();
    for (int i = 0; i < Slots; ++i) request();
  }
};

}  // namespace mamba::cuda::stack
