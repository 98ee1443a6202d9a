// What the steps of a chunk have of each other: see mma_place.cuh.
#pragma once

#include "kernels/scan/ssd_grad/mma_place.cuh"

namespace mamba::cuda {

class MmaWithin : public MmaPlace {
 public:
  __device__ explicit MmaWithin(const SsdGradOperands& op) : MmaPlace(op) {}

  __device__ void run() {
    for (int h = 0; h < place().heads; ++h) {
      begin(h);
      if (h == 0) multiply_CB();
      one_head();
      arrive_at(mixed_barrier, mma_chunk_threads / 2);
    }
    __syncthreads();
    put_Z();
    __syncthreads();
  }

 private:
  __device__ int first_row() const { return 16 * warp(); }
  __device__ int row(int half, Lane lane) const { return first_row() + 8 * half + lane.g(); }

  __device__ void multiply_CB() const {
    const Lane lane;
#pragma unroll 1
    for (int c = 0; c <= warp(); ++c) {
      float tiles[2][4] = {};
#pragma unroll
      for (int k = 0; k < mma_states; k += 16) {
        std::uint32_t a[4], b[4];
        load_rows(a, C(), state_pitch, first_row(), k, lane);
        load_columns(b, B(), state_pitch, 16 * c, k, lane);
        multiply_pair(tiles[0], tiles[1], a, b);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* to = CB() + row(i % 2, lane) * CB_pitch + 16 * c + i / 2 * 8 + 2 * lane.q();
        *reinterpret_cast<float2*>(to) = {tiles[i / 2][2 * (i % 2)], tiles[i / 2][2 * (i % 2) + 1]};
      }
    }
    __syncwarp();
  }

  // Z, which is added to that of the heads before; L (C . B); and what spans each step.
  __device__ void one_head() {
    const Lane lane;
    std::uint32_t a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_rows(a[k], dy(), channel_pitch, first_row(), 16 * k, lane);
    float sums[2], rests[2], before[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sums[half] = steps().sum(row(half, lane));
      rests[half] = steps().sum_rest(row(half, lane));
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (c > warp()) break;
      float tiles[2][4] = {}, down[4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        std::uint32_t b[4];
        load_columns(b, x(), channel_pitch, 16 * c, 16 * k, lane);
        multiply_pair(tiles[0], tiles[1], a[k], b);
      }
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int j = 16 * c + 8 * t + 2 * lane.q();
        mix(j, tiles[t], Z_[2 * c + t], sums, rests, lane);
        sum_along_rows(j, tiles[t], before, down[2 * t], down[2 * t + 1], lane);
      }
      put_spans(16 * c, down, lane);
    }
  }
  // dy . x of steps j and j + 1 becomes Z (C . B). sums and rests: of steps i.
  __device__ void mix(int j0, float (&dyx)[4], float (&Z)[4], const float (&sums)[2],
                      const float (&rests)[2], Lane lane) const {
    const SsdSteps of = steps();
    float sums_j[2], rests_j[2], deltas[2];
    load_floats<2>(of.at + SsdSteps::sums * ssd_chunk + j0, sums_j);
    load_floats<2>(of.at + SsdSteps::rests * ssd_chunk + j0, rests_j);
    load_floats<2>(of.at + SsdSteps::deltas * ssd_chunk + j0, deltas);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row(half, lane);
      float CB_of[2], pair[2];
      load_floats<2>(CB() + i * CB_pitch + j0, CB_of);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = j0 + e, at = 2 * half + e;
        const float way = SsdSteps::way(sums[half], rests[half], sums_j[e], rests_j[e]);
        const float L = j > i ? 0.0f : exp2_approx(-log2e * way);
        if (i == j) kept(h_, skip)[i] = dyx[at];
        const float z = L == 0 ? 0.0f : dyx[at] * (L * deltas[e]);
        Z[at] += z;
        dyx[at] = L == 0 ? 0.0f : z * CB_of[e];
        pair[e] = L == 0 ? 0.0f : L * CB_of[e];
      }
      *reinterpret_cast<std::uint32_t*>(mixed() + i * channel_pitch + j0) =
          pack_pair(pair[0], pair[1]);
    }
  }
  // spans[k] = the sum over rows i >= k and columns j < k: along each row first, then down each
  // column k. before: the rows' sums over tiles before; down: of columns k and k + 1.
  __device__ void sum_along_rows(int k, const float (&tile)[4], float (&before)[2], float& down,
                                 float& next, Lane lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float own = tile[2 * half] + tile[2 * half + 1];
      const float beside = __shfl_xor_sync(all_lanes, own, 1), two = own + beside;
      const float others = __shfl_xor_sync(all_lanes, two, 2);
      const float here = before[half] + ((lane.q() & 2) != 0 ? others : 0.0f) +
                         ((lane.q() & 1) != 0 ? beside : 0.0f);
      if (row(half, lane) >= k) down += here;
      if (row(half, lane) >= k + 1) next += here + tile[2 * half];
      before[half] += two + others;
    }
  }
  // Lanes that share columns add up, each two for one of the four in the end.
  __device__ void put_spans(int first, const float (&down)[4], Lane lane) const {
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
      kept(h_, spans + warp())[first + (third ? 8 : 0) + 2 * lane.q() + (second ? 1 : 0)] = one;
    }
  }
  __device__ void put_Z() const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (8 * t > first_row() + 15) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        bf16* to = mixed() + row(half, lane) * channel_pitch + 8 * t + 2 * lane.q();
        *reinterpret_cast<std::uint32_t*>(to) = pack_pair(Z_[t][2 * half], Z_[t][2 * half + 1]);
      }
    }
  }

  float Z_[8][4] = {};
};

}  // namespace mamba::cuda
