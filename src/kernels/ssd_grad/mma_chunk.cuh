// What a block of SsdGradPlan::mma does: see mma_place.cuh.
#pragma once

#include "kernels/ssd_grad/mma_within.cuh"

namespace mamba::cuda {

class MmaChunk : public MmaWithin {
 public:
  __device__ MmaChunk(const SsdGradOperands& op, std::int64_t row, std::int64_t c, int group,
                      int head_block)
      : MmaWithin(op, row, c, group, head_block) {}

  __device__ void run() {
    fetch_states(op_.B, B());
    fetch_states(op_.C, C());
    fetch(0);
    for (int h = 0; h < place().heads; ++h) {
      begin(h);
      if (h == 0 && !is_above()) multiply_CB();
      if (!is_above()) {
        within_chunk();
      } else if (h > 0) {
        add_up(h - 1);
      }
      if (is_of_outputs()) {
        from_far<true>();
      } else {
        from_far<false>();
      }
      from_adjoint();
      put_through();
      from_outputs(
          __syncthreads_or(place().parted && has_wild(dy(), channel_pitch, mma_channels)) != 0);
    }
    __syncthreads();
    if (is_above()) {
      add_up(place().heads - 1);
    } else {
      put_Z();
    }
    const bool wild = __syncthreads_or(place().parted && (has_wild(B(), state_pitch, mma_states) ||
                                                          has_wild(C(), state_pitch, mma_states)));
    if (is_of_outputs()) {
      add_within<true>(wild);
    } else {
      add_within<false>(wild);
    }
    finish();
  }

 private:
  // ---- from states and adjoints ----

  // Rows of what a reset parts from that side are zero, whatever is there.
  template <int kTiles>
  static __device__ void forget_rows(float (&tiles)[kTiles][4], const float (&weights)[2]) {
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      if (weights[i % 4 / 2] == 0) tiles[i / 4][i % 4] = 0;
    }
  }
  // E S^T dy, which is added to dC, and its product with C; or delta L[last] G^T x, to dB.
  template <bool kOutputs>
  __device__ void from_far() {
    const Lane lane;
    float sums[2] = {}, weights[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half, lane);
      weights[half] = kOutputs ? steps().from_start(row) : steps().weight(row);
    }
#pragma unroll
    for (int t = 0; t < 8; t += 4) {
      float tiles[4][4] = {};
#pragma unroll
      for (int k = 0; k < mma_channels; k += 16) {
        std::uint32_t a[4];
        load_rows(a, kOutputs ? dy() : x(), channel_pitch, rows_, k, lane);
#pragma unroll
        for (int n = 0; n < 4; n += 2) {
          std::uint32_t b[4];
          load_columns_across(b, kOutputs ? S() : G(), state_pitch, states_from() + 8 * (t + n), k,
                              lane);
          multiply_pair(tiles[n], tiles[n + 1], a, b);
        }
      }
      if (place().parted) forget_rows(tiles, weights);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bf16* row = C() + row_of(half, lane) * state_pitch + states_from() + 2 * lane.q();
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float c[2] = {};
          if (kOutputs) load_pair(row + 8 * (t + n), c[0], c[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = tiles[n][2 * half + e];
            total_[t + n][2 * half + e] = fmaf(weights[half], value, total_[t + n][2 * half + e]);
            if (kOutputs) sums[half] = fmaf(value, c[e], sums[half]);
          }
        }
      }
    }
    if constexpr (kOutputs) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sums[half] = weights[half] == 0 ? 0 : weights[half] * sums[half];
      }
      put_row_sums(from_state + column_ / 16, sums, lane);
    }
  }
  // L[last, j] G B[j], which q begins with.
  __device__ void from_adjoint() {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 8; ++i) q_[i / 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, B(), state_pitch, rows_, k, lane);
      load_columns(b, G(), state_pitch, column_, k, lane);
      multiply_pair(q_[0], q_[1], a, b);
    }
    const float weights[2] = {steps().to_end(row_of(0, lane)), steps().to_end(row_of(1, lane))};
    if (place().parted) forget_rows(q_, weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) q_[i / 4][i % 4] *= weights[i % 4 / 2];
    put_products_with_x(to_adjoint, lane);
  }
  __device__ void put_products_with_x(int what, Lane lane) const {
    float sums[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float in[2];
        load_pair(x() + row_of(half, lane) * channel_pitch + column_ + 8 * t + 2 * lane.q(), in[0],
                  in[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = q_[t][2 * half + e];
          if (value != 0) sums[half] = fmaf(value, in[e], sums[half]);
        }
      }
    }
    put_row_sums(what + column_ / 16, sums, lane);
  }
  // E[last] <G, S>, a share for each warp.
  __device__ void put_through() const {
    const float decay = steps().from_start(ssd_chunk - 1);
    float sum = 0;
    if (decay != 0) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int piece = thread() + n * mma_chunk_threads;
        const int at = piece / 16 * state_pitch + piece % 16 * 8;
        float g[8], s[8];
        Packed<bf16, 8>::load(G() + at).unpack(g);
        Packed<bf16, 8>::load(S() + at).unpack(s);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(g[i], s[i], sum);
      }
    }
    sum = sum_of_lanes(sum);
    if (thread() % 32 == 0) {
      kept(h_, 0)[through + thread() / 32] = decay == 0 ? 0 : decay * sum;
    }
  }

  // What outputs from step j on have, and with it all of q; dx.
  __device__ void from_outputs(bool wild) {
    const Lane lane;
    if (wild) {
      add_selected<false>(
          q_, lane, [](int j, int i) { return mixed()[i * channel_pitch + j]; }, dy(),
          channel_pitch, column_);
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (k < rows_) continue;
        std::uint32_t a[4], b[4];
        load_rows_across(a, mixed(), channel_pitch, rows_, k, lane);
        load_columns_across(b, dy(), channel_pitch, column_, k, lane);
        multiply_pair(q_[0], q_[1], a, b);
      }
    }
    put_products_with_x(input, lane);
    const float D = op_.D == nullptr ? 0 : op_.D[place().first_head + h_];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = row_of(half, lane);
      const float delta = steps().delta(j);
      float dx[2][2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float out[2];
        load_pair(dy() + j * channel_pitch + column_ + 8 * t + 2 * lane.q(), out[0], out[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float skipped = op_.D == nullptr ? 0 : D * out[e];
          dx[t][e] = fmaf(delta, q_[t][2 * half + e], skipped);
        }
      }
      const bool there = j < place().count;
      bf16* to = place().dx + (there ? j : 0) * op_.dx.step_pitch + h_ * op_.head_dim + column_;
      store_row(to, dx, there, op_.head_dim - column_, lane);
    }
  }

  // ---- behind the last head ----

  // Z B to dC, or Z^T C to dB, of all heads at once.
  template <bool kOutputs>
  __device__ void add_within(bool wild) {
    const Lane lane;
    const bf16* states = kOutputs ? B() : C();
    if (wild) {
      add_selected<kOutputs>(
          total_, lane,
          [](int row, int k) {
            return mixed()[kOutputs ? row * channel_pitch + k : k * channel_pitch + row];
          },
          states, state_pitch, states_from());
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (kOutputs ? k > rows_ : k < rows_) continue;
        std::uint32_t a[4];
        if constexpr (kOutputs) {
          load_rows(a, mixed(), channel_pitch, rows_, k, lane);
        } else {
          load_rows_across(a, mixed(), channel_pitch, rows_, k, lane);
        }
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
          std::uint32_t b[4];
          load_columns_across(b, states, state_pitch, states_from() + 8 * t, k, lane);
          multiply_pair(total_[t], total_[t + 1], a, b);
        }
      }
    }
    const std::int64_t first =
        std::int64_t{place().group} * op_.d_state + states_from() + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_of(half, lane);
      if (row >= place().count) continue;
      const PutStates<bf16> put(op_, kOutputs, place().row, place().start + row, place().head_block,
                                first);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        if (states_from() + 8 * t >= op_.d_state) break;
        put(8 * t, total_[t][2 * half]);
        put(8 * t + 1, total_[t][2 * half + 1]);
      }
    }
  }
  __device__ void finish() const {
    const int lane = thread() % 32;
    for (int h = thread() / 32; h < place().heads; h += warps) {
      const int head = place().first_head + h;
      const SsdGradSteps steps = op_.steps_of(place().row, place().c, head);
      SsdStepSums of[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int k = 2 * lane + n;
        const float adjoint = kept(h, of_adjoint)[k];
        of[n] = {kept(h, of_spans)[k], kept(h, of_state)[k],
                 adjoint == 0 ? 0 : steps.delta(k) * adjoint, kept(h, of_input)[k],
                 kept(h, skip)[k]};
      }
      for (int group = 1; group < 4; ++group) {
        const float* rows = kept(h, of_rows + group - 1) + 2 * lane;
        float behind = __shfl_down_sync(all_lanes, sum_of_lanes_from(rows[0] + rows[1]), 1);
        if (lane == 31) behind = 0;
        if (2 * lane / 16 != group) continue;
        of[0].within += behind + rows[1] + rows[0];
        of[1].within += behind + rows[1];
      }
      float sum = 0;
      for (int w = 0; w < warps; ++w) sum += kept(h, 0)[through + w];
      finish_steps<bf16>(op_, place().row, place().c, head, of, sum);
    }
  }

  float q_[2][4];
  float total_[8][4] = {};  // dC or dB
};

__global__ void __launch_bounds__(mma_chunk_threads, 1)
    ssd_grad_mma_chunk_kernel(const __grid_constant__ SsdGradOperands op) {
  const std::int64_t blocks = std::int64_t{op.groups} * op.head_blocks;
  const std::int64_t chunk = blockIdx.x / blocks, row = chunk / op.chunks;
  const auto block = static_cast<int>(blockIdx.x - chunk * blocks);
  MmaChunk(op, row, chunk - row * op.chunks, block / op.head_blocks, block % op.head_blocks).run();
}

}  // namespace mamba::cuda
