// What the chunks of an Ssd know of a head's steps before any matrix: delta, and the decays between
// steps, each a power of two whose exponent is a difference of two sums of the chunk.
//
// The sums are f32, begin anew at every reset, and take no more than -160 from a step, for a decay
// below 2^-149 is zero. So the exponent of a decay is off by at most 8 roundings of the chunk's
// sum: a relative error of the decay of at most 8 x 2^-24 times that sum, which beside 16-bit
// products (2^-8 in bf16) is small as long as the sum is below a thousand.
#pragma once

#include "kernels/ssd/ssd_operands.cuh"

namespace mamba::cuda {

// Where sequences begin in a chunk: bit i for step i.
struct SsdResets {
  unsigned long long at;

  // The last one at or before step i, or -1.
  __device__ __forceinline__ int last(int i) const {
    return 63 - __clzll(static_cast<long long>(at & ((2ull << i) - 1)));
  }
  // The steps that the chunk's first state reaches.
  __device__ __forceinline__ int reached() const {
    return at == 0 ? ssd_chunk : __ffsll(static_cast<long long>(at)) - 1;
  }
};

// Of one head and chunk, in shared memory.
struct SsdSteps {
  float sum[ssd_chunk];     // exponents of two, from the last reset on or the chunk's start
  float lead[ssd_chunk];    // log2 of delta, less that sum
  float start[ssd_chunk];   // by which the chunk's first state has decayed after each step
  float weight[ssd_chunk];  // delta, and what is left of it at the end; 0 before the last reset
  float dt[ssd_chunk];      // as it came
  SsdResets resets;
};

// A decay between two steps from the difference of their sums.
__device__ __forceinline__ float decay_between(float later, float earlier) {
  const float exponent = later - earlier;
  return exp2_approx(exponent > 0 ? 0 : exponent);  // a NaN stays
}

// The sum of `value` over the lanes from `first` to this one.
__device__ __forceinline__ float sum_from(float value, int first, int lane) {
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const float before = __shfl_up_sync(all_lanes, value, apart);
    if (lane - apart >= first) value = __fadd_rn(value, before);
  }
  return value;
}

// What is known of a head's steps in a chunk that comes. By one warp, whose lane has steps `lane`
// and `lane + 32`.
template <class T>
struct SsdRawSteps {
  T dt[2];
  bool reset[2];

  __device__ __forceinline__ void load(const SsdOperands& op, std::int64_t b, std::int64_t t0,
                                       int head, int lane) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const std::int64_t t = t0 + lane + 32 * k;
      const bool there = t < op.time;
      dt[k] = there ? op.dt.at<T>(b, t)[head] : from_float<T>(0);
      reset[k] = there && op.resets(b, t);
    }
  }
  __device__ __forceinline__ void put(int lane, SsdSteps& to) const {
    unsigned flags[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      flags[k] = __ballot_sync(all_lanes, reset[k]);
      to.dt[lane + 32 * k] = to_float(dt[k]);
    }
    if (lane == 0) to.resets = {flags[0] | static_cast<unsigned long long>(flags[1]) << 32};
  }
};

// By the same warp; `there` steps exist.
__device__ __forceinline__ void prepare_steps(const SsdOperands& op, int head, int there, int lane,
                                              SsdSteps& of) {
  const float bias = op.dt_bias != nullptr ? op.dt_bias[head] : 0;
  const float rate = scaled_A(op.A_log[head]);
  const SsdResets resets = of.resets;
  float delta[2], sum[2];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int i = lane + 32 * k;
    delta[k] = i < there ? op.delta(of.dt[i], bias) : 0;
    const float exponent = i < there ? __fmul_rn(delta[k], rate) : 0;
    const int first = max(resets.last(i), 32 * k) - 32 * k;
    sum[k] = sum_from(exponent < -160 ? -160 : exponent, first, lane);
    if (k == 1) {
      const float first_half = __shfl_sync(all_lanes, sum[0], 31);
      if (resets.last(i) < 32) sum[1] = __fadd_rn(first_half, sum[1]);
    }
  }
  const float end = __shfl_sync(all_lanes, sum[1], 31);
  const int last = resets.last(ssd_chunk - 1), reached = resets.reached();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int i = lane + 32 * k;
    of.sum[i] = sum[k];
    of.lead[i] = __fsub_rn(log2f(delta[k]), sum[k]);
    of.start[i] = i < reached ? exp2_approx(sum[k]) : 0;
    of.weight[i] = i >= last ? __fmul_rn(decay_between(end, sum[k]), delta[k]) : 0;
  }
}

}  // namespace mamba::cuda
