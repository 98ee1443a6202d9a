// What chunks have of states and adjoints, and the sums of what they have in all: see
// mma_place.cuh.
#pragma once

#include "kernels/scan/ssd_grad/mma_within.cuh"

namespace mamba::cuda {

// dC, or dB.
template <bool kOutputs>
class MmaStates : public MmaPlace {
 public:
  __device__ explicit MmaStates(const SsdGradOperands& op) : MmaPlace(op) {}

  __device__ void run() {
    for (int h = 0; h < place().heads; ++h) {
      begin(h);
      one_head();
      if (!kOutputs) put_through();
    }
    __syncthreads();
    __syncthreads();
    add_within();
    put();
  }

 private:
  // E S^T dy, which is added to dC, and its product with C; or delta L[last] G^T x, to dB.
  __device__ void one_head() {
    const Lane lane;
    float sums[2][2] = {};
#pragma unroll
    for (int t = 0; t < 8; t += 2) {
      __syncwarp();  // or the compiler would begin with all loads, and spill
      float tiles[2][2][4] = {};
#pragma unroll
      for (int k = 0; k < mma_channels; k += 16) {
        std::uint32_t b[4];
        load_columns_across(b, kOutputs ? S() : G(), state_pitch, states_from() + 8 * t, k, lane);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          std::uint32_t a[4];
          load_rows(a, kOutputs ? dy() : x(), channel_pitch, rows() + 16 * part, k, lane);
          multiply_pair(tiles[part][0], tiles[part][1], a, b);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int part = i / 2, half = i % 2;
        const float weight = weight_of(row_of(part, half, lane));
        const bf16* row =
            C() + row_of(part, half, lane) * state_pitch + states_from() + 8 * t + 2 * lane.q();
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float c[2] = {};
          if (kOutputs) load_pair(row + 8 * n, c[0], c[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = weight == 0 ? 0.0f : tiles[part][n][2 * half + e];
            float& total = total_[part][t + n][2 * half + e];
            total = fmaf(weight, value, total);
            if (kOutputs) sums[part][half] = fmaf(value, c[e], sums[part][half]);
          }
        }
      }
    }
    if (!kOutputs) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = weight_of(row_of(i / 2, i % 2, lane));
      sums[i / 2][i % 2] = weight == 0 ? 0 : weight * sums[i / 2][i % 2];
    }
    put_row_sums(of_state, sums, lane);
  }
  __device__ float weight_of(int row) const {
    return kOutputs ? steps().from_start(row) : steps().weight(row);
  }
  // E[last] <G, S>, a share for each warp.
  __device__ void put_through() const {
    const float decay = steps().from_start(ssd_chunk - 1);
    float sum = 0;
    if (decay != 0) {
      const int thread = MmaPlace::thread() % 128;
#pragma unroll 2
      for (int n = 0; n < 8; ++n) {
        const int at = (thread / 16 + 8 * n) * state_pitch + thread % 16 * 8;
        float g[8], s[8];
        Packed<bf16, 8>::load(G() + at).unpack(g);
        Packed<bf16, 8>::load(S() + at).unpack(s);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(g[i], s[i], sum);
      }
    }
    sum = sum_of_lanes(sum);
    if (thread() % 32 == 0) kept(h_, through)[warp()] = decay == 0 ? 0 : decay * sum;
  }

  // Z B to dC, or Z^T C to dB, of all heads at once.
  __device__ void add_within() {
    const Lane lane;
    const bf16* states = kOutputs ? B() : C();
    if (place().parted && has_wild(states, state_pitch, states_from(), 64)) {
      add_selected<kOutputs>(
          total_, lane,
          [](int row, int k) {
            return mixed()[kOutputs ? row * channel_pitch + k : k * channel_pitch + row];
          },
          states, state_pitch, states_from());
      return;
    }
#pragma unroll
    for (int k = 0; k < ssd_chunk; k += 16) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int row = rows() + 16 * part;
        if (kOutputs ? k > row : k < row) continue;
        std::uint32_t a[4];
        if constexpr (kOutputs) {
          load_rows(a, mixed(), channel_pitch, row, k, lane);
        } else {
          load_rows_across(a, mixed(), channel_pitch, row, k, lane);
        }
#pragma unroll
        for (int t = 0; t < 8; t += 2) {
          std::uint32_t b[4];
          load_columns_across(b, states, state_pitch, states_from() + 8 * t, k, lane);
          multiply_pair(total_[part][t], total_[part][t + 1], a, b);
        }
      }
    }
  }
  __device__ void put() const {
    const Lane lane;
    const std::int64_t first =
        std::int64_t{place().group} * op_.d_state + states_from() + 2 * lane.q();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row_of(i / 2, i % 2, lane);
      if (row >= place().count) continue;
      const PutStates<bf16> put(op_, kOutputs, place().row, place().start + row, place().head_block,
                                first);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        if (states_from() + 8 * t >= op_.d_state) break;
        put(8 * t, total_[i / 2][t][2 * (i % 2)]);
        put(8 * t + 1, total_[i / 2][t][2 * (i % 2) + 1]);
      }
    }
  }

  float total_[2][8][4] = {};
};

class MmaChannels : public MmaPlace {
 public:
  __device__ explicit MmaChannels(const SsdGradOperands& op) : MmaPlace(op) {}

  __device__ void run() {
    for (int h = 0; h < place().heads; ++h) {
      begin(h);
      const bool wild =
          place().parted && has_wild(dy(), channel_pitch, channels_from(), mma_channels / 2);
      from_adjoint();
      wait_at(mixed_barrier, mma_chunk_threads / 2);
      from_outputs(wild);
      put();
    }
    __syncthreads();
    __syncthreads();
  }

 private:
  // L[last, j] G B[j], which q begins with.
  __device__ void from_adjoint() {
    const Lane lane;
#pragma unroll
    for (int i = 0; i < 32; ++i) q_[i / 16][i / 4 % 4][i % 4] = 0;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t b[2][4];
      load_columns(b[0], G(), state_pitch, channels_from(), k, lane);
      load_columns(b[1], G(), state_pitch, channels_from() + 16, k, lane);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        std::uint32_t a[4];
        load_rows(a, B(), state_pitch, rows() + 16 * part, k, lane);
        multiply_pair(q_[part][0], q_[part][1], a, b[0]);
        multiply_pair(q_[part][2], q_[part][3], a, b[1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = steps().to_end(row_of(i / 2, i % 2, lane));
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float& value = q_[i / 2][n / 2][2 * (i % 2) + n % 2];
        value = weight == 0 ? 0 : weight * value;
      }
    }
    put_products_with_x(of_adjoint, lane);
  }
  __device__ void put_products_with_x(int what, Lane lane) const {
    float sums[2][2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bf16* row = x() + row_of(i / 2, i % 2, lane) * channel_pitch + channels_from();
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        float in[2];
        load_pair(row + 8 * t + 2 * lane.q(), in[0], in[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float value = q_[i / 2][t][2 * (i % 2) + e];
          if (value != 0) sums[i / 2][i % 2] = fmaf(value, in[e], sums[i / 2][i % 2]);
        }
      }
    }
    put_row_sums(what, sums, lane);
  }
  // What outputs from step j on have, and with it all of q.
  __device__ void from_outputs(bool wild) {
    const Lane lane;
    if (wild) {
      add_selected<false>(
          q_, lane, [](int j, int i) { return mixed()[i * channel_pitch + j]; }, dy(),
          channel_pitch, channels_from());
    } else {
#pragma unroll
      for (int k = 0; k < ssd_chunk; k += 16) {
        if (k < rows()) continue;
        std::uint32_t b[2][4];
        load_columns_across(b[0], dy(), channel_pitch, channels_from(), k, lane);
        load_columns_across(b[1], dy(), channel_pitch, channels_from() + 16, k, lane);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          if (k < rows() + 16 * part) continue;
          std::uint32_t a[4];
          load_rows_across(a, mixed(), channel_pitch, rows() + 16 * part, k, lane);
          multiply_pair(q_[part][0], q_[part][1], a, b[0]);
          multiply_pair(q_[part][2], q_[part][3], a, b[1]);
        }
      }
    }
    put_products_with_x(of_input, lane);
  }
  __device__ void put() const {
    const Lane lane;
    const float D = op_.D == nullptr ? 0 : op_.D[place().first_head + h_];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = row_of(i / 2, i % 2, lane);
      const float delta = steps().delta(j);
      float dx[4][2];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        float out[2];
        load_pair(dy() + j * channel_pitch + channels_from() + 8 * t + 2 * lane.q(), out[0],
                  out[1]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float skipped = op_.D == nullptr ? 0 : D * out[e];
          dx[t][e] = fmaf(delta, q_[i / 2][t][2 * (i % 2) + e], skipped);
        }
      }
      const bool there = j < place().count;
      bf16* to =
          place().dx + (there ? j : 0) * op_.dx.step_pitch + h_ * op_.head_dim + channels_from();
      store_row(to, dx, there, op_.head_dim - channels_from(), lane);
    }
  }

  float q_[2][4][4];
};

// Of all heads, by the whole block.
class MmaSums : public MmaPlace {
 public:
  __device__ explicit MmaSums(const SsdGradOperands& op) : MmaPlace(op) {}

  __device__ void run() const {
    const int lane = thread() % 32;
    for (int h = thread() / 32; h < place().heads; h += warps) {
      const int head = place().first_head + h;
      const SsdSteps steps = op_.steps_of(place().row, place().c, head);
      SsdStepSums of[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int k = 2 * lane + n;
        const auto both = [&](int what) { return kept(h, what)[k] + kept(h, what + 1)[k]; };
        float within = 0;
        for (int part = k / 16; part < 4; ++part) within += kept(h, spans + part)[k];
        const float adjoint = both(of_adjoint);
        of[n] = {within, both(of_state), adjoint == 0 ? 0 : steps.delta(k) * adjoint,
                 both(of_input), kept(h, skip)[k]};
      }
      float sum = 0;
      for (int w = 0; w < 4; ++w) sum += kept(h, through)[w];
      finish_steps<bf16>(op_, place().row, place().c, head, of, sum);
    }
  }
};

__global__ void __launch_bounds__(mma_chunk_threads, 1)
    ssd_grad_mma_chunk_kernel(const __grid_constant__ SsdGradOperands op) {
  MmaPlace(op).begin_block();
  // All meet at the same barriers: where a head begins, and twice behind the last one.
  switch (thread_id() / 128) {
    case 0:
      MmaWithin(op).run();
      break;
    case 1:
      MmaStates<true>(op).run();
      break;
    case 2:
      MmaStates<false>(op).run();
      break;
    default:
      MmaChannels(op).run();
      break;
  }
  MmaSums(op).run();
}

}  // namespace mamba::cuda
