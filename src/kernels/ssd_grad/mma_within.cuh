// What the steps of a chunk have of each other: Z, L (C . B), and what spans each step.
#pragma once

#include "kernels/ssd_grad/mma_place.cuh"

namespace mamba::cuda {

class MmaWithin : public MmaPlace {
 protected:
  using MmaPlace::MmaPlace;

  __device__ void multiply_CB() {
    const Lane lane;
#pragma unroll
    for (int k = 0; k < mma_states; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, C(), state_pitch, rows_, k, lane);
      load_columns(b, B(), state_pitch, column_, k, lane);
      multiply_pair(CB_[0], CB_[1], a, b);
    }
  }

  // Z, which is added to that of the heads before; L (C . B); and what spans each step.
  __device__ void within_chunk() {
    const Lane lane;
    float tile[2][4] = {};
#pragma unroll
    for (int k = 0; k < mma_channels; k += 16) {
      std::uint32_t a[4], b[4];
      load_rows(a, dy(), channel_pitch, rows_, k, lane);
      load_columns(b, x(), channel_pitch, column_, k, lane);
      multiply_pair(tile[0], tile[1], a, b);
    }
    float before[2] = {}, down[4] = {};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      mix(t, tile[t], lane);
      sum_along_rows(t, tile[t], before, down, lane);
    }
    if (column_ < 48 && lane.q() == 0) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        part(h_, rows_before + column_ / 16)[row_of(half, lane)] = before[half];
      }
    }
    put_spans(down, lane);
  }
  // dy . x becomes Z (C . B).
  __device__ void mix(int t, float (&dyx)[4], Lane lane) {
    const SsdGradSteps of = steps();
    const int j0 = column_ + 8 * t + 2 * lane.q();
    float sums[2], rests[2], deltas[2];  // of steps j
    load_floats<2>(of.at + SsdGradSteps::sums * ssd_chunk + j0, sums);
    load_floats<2>(of.at + SsdGradSteps::rests * ssd_chunk + j0, rests);
    load_floats<2>(of.at + SsdGradSteps::deltas * ssd_chunk + j0, deltas);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row_of(half, lane);
      const float sum = of.sum(i), rest = of.sum_rest(i);
      float pair[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = j0 + e, at = 2 * half + e;
        const float way = SsdGradSteps::way(sum, rest, sums[e], rests[e]);
        const float L = j > i ? 0.0f : exp2_approx(-log2e * way);
        if (i == j) kept(h_, skip)[i] = dyx[at];
        const float z = L == 0 ? 0.0f : dyx[at] * (L * deltas[e]);
        Z_[t][at] += z;
        dyx[at] = L == 0 ? 0.0f : z * CB_[t][at];
        pair[e] = L == 0 ? 0.0f : L * CB_[t][at];
      }
      *reinterpret_cast<std::uint32_t*>(mixed() + i * channel_pitch + j0) =
          pack_pair(pair[0], pair[1]);
    }
  }
  // spans[k] = the sum over rows i >= k and columns j < k: along each row first, here over this
  // warp's columns, then down each column. before: the rows' sums over tiles before.
  __device__ void sum_along_rows(int t, const float (&tile)[4], float (&before)[2],
                                 float (&down)[4], Lane lane) const {
    const int k = column_ + 8 * t + 2 * lane.q();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float own = tile[2 * half] + tile[2 * half + 1];
      const float beside = __shfl_xor_sync(all_lanes, own, 1), two = own + beside;
      const float others = __shfl_xor_sync(all_lanes, two, 2);
      const float here = before[half] + ((lane.q() & 2) != 0 ? others : 0.0f) +
                         ((lane.q() & 1) != 0 ? beside : 0.0f);
      if (row_of(half, lane) >= k) down[2 * t] += here;
      if (row_of(half, lane) >= k + 1) down[2 * t + 1] += here + tile[2 * half];
      before[half] += two + others;
    }
  }
  // Lanes that share columns add up, each two for one of the four in the end.
  __device__ void put_spans(const float (&down)[4], Lane lane) const {
    const bool third = (lane.g() & 4) != 0, second = (lane.g() & 2) != 0;
    float two[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      two[n] = (third ? down[n + 2] : down[n]) +
               __shfl_xor_sync(all_lanes, third ? down[n] : down[n + 2], 16);
    }
    float one =
        (second ? two[1] : two[0]) + __shfl_xor_sync(all_lanes, second ? two[0] : two[1], 8);
    one += __shfl_xor_sync(all_lanes, one, 4);
    if (lane.g() % 2 == 0) {
      part(h_, spans + rows_ / 16)[column_ + (third ? 8 : 0) + 2 * lane.q() + (second ? 1 : 0)] =
          one;
    }
  }
  // By two of the warps that have nothing to do within the chunk: what is known of each step of a
  // head, in one place.
  __device__ void add_up(int h) const {
    if (rows_ > 0 || column_ < 32) return;
    const int k = thread() % 32 + (column_ - 32) * 2, group = k / 16;
    const auto sum = [&](int first, int count) {
      float all = 0;
#pragma unroll 1
      for (int n = first; n < first + count; ++n) all += part(h, n)[k];
      return all;
    };
    kept(h, of_spans)[k] = sum(spans + group, 4 - group);
#pragma unroll 1
    for (int n = 0; n < 3; ++n) {
      // Rows have sums over columns up to their own.
      kept(h, of_rows + n)[k] = sum(rows_before, min(n, group) + 1);
    }
    kept(h, of_state)[k] = sum(from_state, 2);
    kept(h, of_adjoint)[k] = sum(to_adjoint, 4);
    kept(h, of_input)[k] = sum(input, 4);
  }

  __device__ void put_Z() const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<std::uint32_t*>(mixed() + row_of(half, lane) * channel_pitch + column_ +
                                          8 * t + 2 * lane.q()) =
            pack_pair(Z_[t][2 * half], Z_[t][2 * half + 1]);
      }
    }
  }

 private:
  float CB_[2][4] = {}, Z_[2][4] = {};
};

}  // namespace mamba::cuda
