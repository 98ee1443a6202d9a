// Blocks of a cluster (compute capability 9.0): they run at the same time and reach each other's
// shared memory. Elsewhere a block is alone, and none of this may be called.
#pragma once

#include "kernels/gpu/async_copy.cuh"

namespace mamba::cuda {

// A barrier of all threads of the cluster's blocks in two halves: what one wrote before it arrived,
// to any of the blocks' shared memory, the others see once they have waited.
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// To where `to` would be in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ void store_in_block(int rank, float* to, const float4& value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 there;\n mapa.shared::cluster.u32 there, %0, %1;\n"
      " st.shared::cluster.v4.f32 [there], {%2, %3, %4, %5};\n}" ::"r"(shared_address(to)),
      "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
#endif
}

}  // namespace mamba::cuda
