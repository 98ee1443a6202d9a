// Long sequences as a relay of blocks. A multiprocessor serves its oldest warps first, so of blocks
// that all walk from the first step to the last the oldest are done early and the youngest are left
// alone at the end, too few to fill the pipes (measured: five blocks that could have ended together
// after 580 us ended at 0.4, 0.44, 0.77 and 1 of the time). So a block walks one leg and leaves the
// states for the next leg's block, which is always a young one: nobody falls behind.
//
// Blocks take legs by ticket, all first legs before all second ones. Whoever waits for a leg waits
// for a block that has started, so somebody always moves.
#pragma once

#include <mamba/tensor.hpp>

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/scan/scan_operands.cuh"

namespace mamba::cuda {

// A leg of one group (a batch row and a block of its channels): steps `begin` .. `end`.
struct ScanLeg {
  std::int64_t group;
  int number;
  bool first, last;
  std::int64_t begin, end;
};

// Shared memory that take() has, aligned as what follows it.
constexpr int relay_bytes = 16;

struct ScanRelay {
  std::int64_t groups = 0, steps = 0;  // steps of a leg
  int legs = 1;
  int* tickets = nullptr;   // taken so far; then for each group the legs done
  float* states = nullptr;  // [batch, channels, d_state], between legs

  ScanRelay(std::int64_t group_count, std::int64_t leg_steps, const SelectiveScan& op,
            Scratch& scratch, Stream& stream)
      : groups(group_count), steps(leg_steps) {
    const std::int64_t time = op.x.dim(1);
    legs = static_cast<int>(steps > 0 ? (time + steps - 1) / steps : 1);
    if (legs <= 1) {
      legs = 1;
      steps = time;
      return;
    }
    states =
        scratch.take({op.x.dim(0), op.x.dim(2), detail::d_state_of(op)}, DType::f32).data<float>();
    TensorView counters = scratch.take({groups + 1}, DType::i32);
    tickets = counters.data<std::int32_t>();
    check(cudaMemsetAsync(tickets, 0, sizeof(int) * (groups + 1), handle(stream)),
          "selective_scan");
  }
  unsigned blocks() const { return static_cast<unsigned>(groups * legs); }

  // For a whole block, which must not have diverged.
  __device__ __forceinline__ ScanLeg take(std::int64_t time) const {
    std::int64_t ticket = blockIdx.x;
    if (legs > 1) {
      __shared__ int taken;
      if (threadIdx.x == 0) taken = atomicAdd(tickets, 1);
      __syncthreads();
      ticket = taken;
    }
    ScanLeg leg;
    leg.group = ticket % groups;
    leg.number = static_cast<int>(ticket / groups);
    leg.first = leg.number == 0;
    leg.last = leg.number == legs - 1;
    leg.begin = leg.number * steps;
    leg.end = leg.last ? time : leg.begin + steps;
    return leg;
  }
  // Until the leg before has left its states.
  __device__ __forceinline__ void wait(const ScanLeg& leg) const {
    if (leg.first) return;
    if (threadIdx.x == 0) {
      const int* done = tickets + 1 + leg.group;
      int legs_done = 0;
      do {
        legs_done = load_acquire(done);
        if (legs_done < leg.number) __nanosleep(100);
      } while (legs_done < leg.number);
    }
    __syncthreads();
  }
  // The states are there for the next leg.
  __device__ __forceinline__ void pass_on(const ScanLeg& leg) const {
    if (leg.last) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) store_release(tickets + 1 + leg.group, leg.number + 1);
  }
};

}  // namespace mamba::cuda
