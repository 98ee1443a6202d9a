// All inline PTX of the kernels, but for what only 9.0 has (ptx_90a.cuh): each instruction stands
// here once, as a function with a name.
// Where a comment names no architecture, 8.0 has it, the oldest that kernels are built for.
//
// "Volatile" says that the compiler neither drops the instruction nor exchanges it with another
// volatile one; "memory", that it moves no access of memory across it either.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include <mamba/dtype.hpp>

namespace mamba::cuda {

// Of a warp: for the shuffles and votes that C++ does have.
constexpr unsigned all_lanes = 0xffffffffu;

// ---- arithmetic ---------------------------------------------------------------------------------

// ex2.approx.ftz: 2^x to 2 units in the last place. Subnormals count as zero.
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// rcp.approx.ftz: 1 / x to 1 unit in the last place. Subnormals count as zero.
__device__ __forceinline__ float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// max.NaN: the larger one, or NaN if there is one.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
// shfl.sync.up by the whole warp: P, h = P P', P h' + h with the P' and h' of the lane `apart`
// before this one; where there is none, which the shuffle itself says, both stay.
__device__ __forceinline__ void join_lane_before(int apart, float& P, float& h) {
  asm volatile(
      "{ .reg .pred there; .reg .f32 P_other, h_other;\n"
      "shfl.sync.up.b32 P_other, %0, %2, 0, 0xffffffff;\n"
      "shfl.sync.up.b32 h_other|there, %1, %2, 0, 0xffffffff;\n"
      "@there fma.rn.f32 %1, %0, h_other, %1;\n"
      "@there mul.rn.f32 %0, %0, P_other; }"
      : "+f"(P), "+f"(h)
      : "r"(apart));
}
// mma.m16n8k16 on the tensor cores, by the whole warp: d[16 x 8] += a[16 x 16] b[16 x 8] with bf16
// or f16 products and f32 sums. Lane 4 g + q has, of a, rows g and g + 8 at two pairs of depths
// (a0: row g, first pair; a1: row g + 8, first pair; a2 and a3: the second pair), of b column g at
// the same pairs (b0, b1), and of d rows g (d[0], d[1]) and g + 8 (d[2], d[3]) in columns 2 q and
// 2 q + 1.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], std::uint32_t a0, std::uint32_t a1,
                                    std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// ---- loads and prefetches -----------------------------------------------------------------------

// ld.global.cg: from L2, whatever L1 has. Volatile, so that it passes no wait. The address is a
// multiple of the word's size.
template <class Word>
__device__ __forceinline__ Word load_from_l2(const void* from) {
  static_assert(std::is_same_v<Word, uint4> || std::is_same_v<Word, uint2> ||
                std::is_same_v<Word, std::uint32_t>);
  Word to;
  if constexpr (sizeof(Word) == 16) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "l"(from));
  } else if constexpr (sizeof(Word) == 8) {
    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(to.x), "=r"(to.y) : "l"(from));
  } else {
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(to) : "l"(from));
  }
  return to;
}
// ld.global.nc.L1::no_allocate of 16 bytes that no kernel writes meanwhile and nobody reads again:
// they take no place in L1. Volatile, so that it passes no wait.
__device__ __forceinline__ uint4 load_past_l1(const void* from) {
  uint4 to;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "l"(from));
  return to;
}
// prefetch.global.L2: the cache line of an address that exists. Any memory will do: in L2 nothing
// is out of date.
__device__ __forceinline__ void prefetch_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
// cp.async.bulk.prefetch.L2: brings `bytes` bytes, a multiple of 16 from an address that is one,
// into L2. From 9.0 on; before, nothing.
__device__ __forceinline__ void prefetch_to_l2(const void* from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}

// ---- words between blocks -----------------------------------------------------------------------

// ld.acquire.gpu: what the thread that stored the value with store_release() had written before is
// seen by loads after this one. Volatile, memory.
__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
// st.release.gpu: see load_acquire(). Volatile, memory.
__device__ __forceinline__ void store_release(int* to, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// st.relaxed.gpu of 8 bytes at once: other blocks come to see all of them or none, and nothing else
// by it. Volatile, memory.
__device__ __forceinline__ void store_relaxed(std::uint64_t* to, std::uint64_t value) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
// ld.relaxed.gpu of two such words, each whole, from a multiple of 16 bytes. Volatile, memory.
__device__ __forceinline__ ulonglong2 load_relaxed(const std::uint64_t* from) {
  ulonglong2 to;
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(to.x), "=l"(to.y)
               : "l"(from)
               : "memory");
  return to;
}

// ---- shared memory ------------------------------------------------------------------------------

// The address by which the instructions below know it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}
// ld.shared of 16 bytes, where only the address in shared memory is known. Volatile, memory.
__device__ __forceinline__ uint4 load_shared(unsigned from) {
  uint4 to;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
               : "r"(from)
               : "memory");
  return to;
}
// st.shared of 4 bytes. Volatile, memory.
__device__ __forceinline__ void store_shared(unsigned to, std::uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}
// st.volatile.shared of a number and a tag, 8 bytes at once: other warps see both or neither.
// Volatile, memory.
__device__ __forceinline__ void store_tagged(void* to, float value, int tag) {
  asm volatile("{ .reg .b64 v; mov.b64 v, {%1, %2}; st.volatile.shared.b64 [%0], v; }" ::"r"(
                   shared_address(to)),
               "f"(value), "r"(tag)
               : "memory");
}
// ld.volatile.shared: what store_tagged() left. Volatile, memory.
__device__ __forceinline__ void load_tagged(const void* from, float& value, int& tag) {
  asm volatile("{ .reg .b64 v; ld.volatile.shared.b64 v, [%2]; mov.b64 {%0, %1}, v; }"
               : "=f"(value), "=r"(tag)
               : "r"(shared_address(from))
               : "memory");
}

// ldmatrix.x4 by the whole warp: four matrices of 8 rows of 16 bytes, lane l giving where row l % 8
// of matrix l / 8 lies. Of each, lane 4 g + q gets the pair of columns 2 q, 2 q + 1 of row g.
// Volatile, memory.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}
// The same of the matrices transposed: rows 2 q and 2 q + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], unsigned from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// stmatrix.x4.trans, the other way: lane l gives where column l % 8 of matrix l / 8, transposed,
// goes. From 9.0 on; before, it may not be called. Volatile, memory.
__device__ __forceinline__ void store_matrices_transposed(unsigned to,
                                                          const std::uint32_t (&from)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
#endif
}
// movmatrix: an 8 x 8 matrix, of which lane 4 g + q has the pair of columns 2 q, 2 q + 1 of row g,
// transposed. Volatile, for it is the whole warp's.
__device__ __forceinline__ std::uint32_t transpose_matrix(std::uint32_t pair) {
  std::uint32_t to;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(pair));
  return to;
}

// ---- special registers --------------------------------------------------------------------------

// mov from %laneid. Volatile, so that each call reads it anew, which costs less than a register
// that is kept for long.
__device__ __forceinline__ int lane_id() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
// The same of %tid.x.
__device__ __forceinline__ int thread_id() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// No instruction: the compiler takes the value for a new one, so that what follows from it is
// computed again and not kept in registers. Volatile.
__device__ __forceinline__ void make_new(int& value) { asm volatile("" : "+r"(value)); }
// mov of zero. Volatile, so that it stays in the branch where it is.
__device__ __forceinline__ void make_zero(float& value) {
  asm volatile("mov.f32 %0, 0f00000000;" : "=f"(value));
}

// ---- copies from memory to shared memory that pass no registers ---------------------------------

// cp.async.cg, past L1: the first `valid` of 16 bytes come from memory and the rest are zeros. The
// copies of a thread go on in groups while it works, and it alone may wait for them. Volatile,
// memory, like all of these.
__device__ __forceinline__ void copy_16_bytes(void* to, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid)
               : "memory");
}
// cp.async.cg of all 16, by shared address; the rest of the line of 128 bytes comes to L2 with
// them.
__device__ __forceinline__ void copy_16_bytes(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
}
// cp.async.ca, through L1: 4, 8 or 16 bytes, of which the first `valid` come from memory and the
// rest are zeros.
template <int Bytes>
__device__ __forceinline__ void copy_bytes(void* to, const void* from, int valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
               "n"(Bytes), "r"(valid)
               : "memory");
}
// cp.async.ca of all of them, by shared address.
template <int Bytes>
__device__ __forceinline__ void copy_bytes(unsigned to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(Bytes)
               : "memory");
}
// cp.async.commit_group: what this thread began to copy since the last one is a group.
__device__ __forceinline__ void end_of_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// cp.async.wait_group: all groups of this thread but the latest `Latest` have arrived; for other
// threads a barrier must follow.
template <int Latest>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Latest) : "memory");
}
// cp.async.wait_all: all that this thread began to copy has arrived, in groups or not.
__device__ __forceinline__ void wait_for_all_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// ---- kernels that begin early -------------------------------------------------------------------

// griddepcontrol.wait: all that earlier kernels wrote is there from here on. Volatile, memory. From
// 9.0 on; before, no kernel begins early.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// griddepcontrol.launch_dependents: the next kernel may take multiprocessors that are free, up to
// its own wait. Volatile. From 9.0 on; before, nothing.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// ---- clusters: blocks that reach each other's shared memory -------------------------------------

// These are from 9.0 on; before, a block is alone, and none of them may be called.
//
// barrier.cluster.arrive.release, by all threads of the cluster's blocks: the first half of a
// barrier. What one wrote before it arrived, to any of the blocks' shared memory, the others see
// once they have waited. Volatile, memory.
__device__ __forceinline__ void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
// barrier.cluster.wait.acquire: the second half. Volatile, memory.
__device__ __forceinline__ void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// mapa and st.shared::cluster: to where `to` would be in the shared memory of block `rank` of the
// cluster. Volatile, memory.
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
