// A step of a stack as its kernel sees it, and where its blocks keep what.
#pragma once

#include <algorithm>
#include <cstdint>

#include "detail/mamba1_step.hpp"
#include "kernels/gpu/state_row.cuh"
#include "kernels/step/stack_words.cuh"

namespace mamba::cuda::stack {

constexpr int tile = 8;             // weight rows of a product
constexpr int unit = threads * 16;  // bytes of a ring's slot: 16 of each thread
constexpr int sum_pitch = warps;    // floats, so that eight rows lie in different banks
constexpr int d_state = Mamba1Step::d_state, d_conv = Mamba1Step::d_conv, past = d_conv - 1;

// Where everything lies in a block's shared memory, in bytes, and among the words.
struct Plan {
  int blocks, selection;
  Pieces model, inner;
  int inputs, input_pitch;               // [warps][rows][input_pitch] T: a run of pieces
  int sums_A, pitch_A, sums_B, pitch_B;  // [rows][pitch][sum_pitch] f32: in_proj's; the others'
  int squares;                           // [rows][warps] f32
  int layers;                            // Mamba1Step::Block[layer_count]
  int norm;                              // [warps][a run of pieces] f32
  int own, own_pitch;                    // [rows][own_pitch] f32: the residual
  int selected;                          // [rows][selection] f32
  int u, gate, channel_pitch;            // [rows][channel_pitch] f32
  int bytes;
  int u_words, selection_words, y_words, residual_words, words;

  Plan(const Mamba1Step& s, int ring_bytes, int most_blocks) : model(s.d_model), inner(s.d_inner) {
    blocks = std::min(most_blocks, s.d_inner / 2);  // one without channels would publish no word
    selection = s.dt_rank + 2 * d_state;
    const auto up = [](int count) { return (count + tile - 1) / tile * tile; };
    const int channels = Share::most(s.d_inner, 2, blocks);
    bytes = ring_bytes;
    const auto take = [&](int count, int size) {
      const int at = bytes;
      bytes += (count * size + 15) / 16 * 16;
      return at;
    };
    input_pitch = (std::max(model.most, inner.most) | 1) * piece;  // two rows in different banks
    pitch_A = up(2 * channels);
    own_pitch = Share::most(s.d_model, 1, blocks);
    pitch_B = up(std::max(own_pitch, Share::most(selection, 1, blocks)));
    channel_pitch = channels;
    inputs = take(warps * s.rows * input_pitch, sizeof(T));
    sums_A = take(s.rows * pitch_A * sum_pitch, sizeof(float));
    sums_B = take(s.rows * pitch_B * sum_pitch, sizeof(float));
    squares = take(warps * s.rows, sizeof(float));
    layers = take(s.layer_count, sizeof(Mamba1Step::Block));
    norm = take(model.values(1), sizeof(float));
    own = take(s.rows * own_pitch, sizeof(float));
    selected = take(s.rows * selection, sizeof(float));
    u = take(s.rows * channel_pitch, sizeof(float));
    gate = take(s.rows * channel_pitch, sizeof(float));
    u_words = inner.values(s.rows) / 2;
    y_words = u_words;
    selection_words = s.rows * selection;
    residual_words = model.values(s.rows);
    words = u_words + y_words + selection_words + residual_words;
  }
};

// Of batch row n. A row that is bad or begins anew is read from nowhere.
__device__ __forceinline__ StateRow<int> state_row(const StackStepSizes& s, int n) {
  StateRow<int> row{n, n, false, false};
  if (s.read != nullptr) {
    row = {s.read[n], s.write[n], false, false};
    row.padding = row.read < 0 && row.write < 0;
    row.bad = row.read >= s.state_rows || row.write >= s.state_rows;
    if (row.bad) row.read = row.write = -1;
  }
  if (s.reset != nullptr && s.reset[n * s.reset_pitch] != 0) row.read = -1;
  return row;
}

struct Operands {
  Mamba1Step step;
  Plan plan;
  HandOver words;
  bool constant_weights;
  int* bad_row;
};

enum Matrix { in_proj, x_proj, out_proj, matrices };

// What a block has of the three matrices of every layer.
struct Shares {
  Share channels, selection, outputs;
  __device__ explicit Shares(const Operands& op) {
    const auto block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
    channels = Share::of(op.step.d_inner, 2, block, blocks);
    selection = Share::of(op.plan.selection, 1, block, blocks);
    outputs = Share::of(op.step.d_model, 1, block, blocks);
  }
  __device__ __forceinline__ int rows(int matrix) const {
    return matrix == in_proj  ? 2 * channels.count
           : matrix == x_proj ? selection.count
                              : outputs.count;
  }
};

}  // namespace mamba::cuda::stack
