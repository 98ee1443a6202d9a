// The inline PTX of files that are compiled for 9.0a alone: products of a warpgroup, which no other
// has, and the copies and barriers that go with them. As in ptx.cuh, each instruction once.
//
// A product is done by a warpgroup (four warps, from a multiple of four on), asynchronously, with
// factors in shared memory:
//
//   d[64 x N] = d + a[64 x 16] b[16 x N]    bf16 factors, f32 sums
//
// Warp w of the four has rows 16 w to 16 w + 15 of d and a; in registers they lie as of mma() (see
// ptx.cuh), for every eight columns of d. All warps of the warpgroup make the same calls:
// wgmma_begin() once registers that a product reads or adds to were written, products,
// wgmma_commit(), and wgmma_wait() before their d is read. What threads wrote to shared memory, a
// product sees after fence_for_products() of those threads and a barrier.
#pragma once

#include <cuda.h>

#include "kernels/gpu/ptx.cuh"

namespace mamba::cuda {

// Kernels of these files are empty in code for another device, which a build may add by its flags.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool compiled_for_90a = true;
#else
constexpr bool compiled_for_90a = false;
#endif

// How a factor lies in shared memory: panels of `Bytes` (128 or 32) a row, from a multiple of
// 1024 bytes on, the pieces of 16 bytes of a row swizzled.
template <int Bytes>
struct Panel {
  static_assert(Bytes == 128 || Bytes == 32);
  static constexpr unsigned eight_rows = 8 * Bytes;

  // Where piece `piece` of row `row` lies in a matrix of `rows` rows, as many panels as it needs.
  __device__ __forceinline__ static unsigned place(int rows, int row, int piece) {
    constexpr int pieces = Bytes / 16;
    const int swizzled = piece % pieces ^ row * Bytes / 128 % pieces;
    return static_cast<unsigned>((piece / pieces * rows + row) * Bytes + swizzled * 16);
  }
  // The upper half of a descriptor.
  static constexpr std::uint32_t kind = eight_rows / 16 | (Bytes == 128 ? 1u : 3u) << 30;
};

// A factor's place as the instruction takes it. The depth runs along rows of a panel, or down its
// columns, then with `panel` bytes from one panel to the next. Moved by adding bytes.
template <int Bytes>
struct Factor {
  std::uint32_t low;

  __device__ __forceinline__ explicit Factor(unsigned address, unsigned panel = 16)
      : low(address / 16 | panel / 16 << 16) {}
  __device__ __forceinline__ std::uint64_t at(unsigned offset) const {
    return std::uint64_t{Panel<Bytes>::kind} << 32 | (low + offset / 16);
  }
};
enum class Depth : int { along_rows = 0, down_columns = 1 };

#define MAMBA_SUMS_4(d, t) "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
#define MAMBA_SUMS_16(d, t) \
  MAMBA_SUMS_4(d, t), MAMBA_SUMS_4(d, t + 1), MAMBA_SUMS_4(d, t + 2), MAMBA_SUMS_4(d, t + 3)
#define MAMBA_SUMS_32(d, t) MAMBA_SUMS_16(d, t), MAMBA_SUMS_16(d, t + 4)
#define MAMBA_NAMES_32                                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
  "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MAMBA_NAMES_64                                                                           \
  MAMBA_NAMES_32                                                                                 \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, " \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// wgmma.mma_async.m64n64k16 of two factors in shared memory. Not `add`: d is written, not added to.
// Volatile, memory, like all of these.
template <Depth A, Depth B, int ABytes, int BBytes>
__device__ __forceinline__ void wgmma(float (&d)[8][4], const Factor<ABytes>& a, unsigned a_offset,
                                      const Factor<BBytes>& b, unsigned b_offset, bool add) {
  asm volatile(
      "{ .reg .pred add; setp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MAMBA_NAMES_32
      "}, %32, %33, add, 1, 1, %35, %36; }"
      : MAMBA_SUMS_32(d, 0)
      : "l"(a.at(a_offset)), "l"(b.at(b_offset)), "r"(static_cast<int>(add)),
        "n"(static_cast<int>(A)), "n"(static_cast<int>(B))
      : "memory");
}
// The same with a in registers, and with 64 or 128 columns.
template <Depth B, int Tiles, int BBytes>
__device__ __forceinline__ void wgmma(float (&d)[Tiles][4], const std::uint32_t (&a)[4],
                                      const Factor<BBytes>& b, unsigned b_offset, bool add) {
  if constexpr (Tiles == 8) {
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" MAMBA_NAMES_32
        "}, {%32, %33, %34, %35}, %36, add, 1, 1, %38; }"
        : MAMBA_SUMS_32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.at(b_offset)),
          "r"(static_cast<int>(add)), "n"(static_cast<int>(B))
        : "memory");
  } else {
    static_assert(Tiles == 16);
    asm volatile(
        "{ .reg .pred add; setp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" MAMBA_NAMES_64
        "}, {%64, %65, %66, %67}, %68, add, 1, 1, %70; }"
        : MAMBA_SUMS_32(d, 0), MAMBA_SUMS_32(d, 8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.at(b_offset)),
          "r"(static_cast<int>(add)), "n"(static_cast<int>(B))
        : "memory");
  }
}
#undef MAMBA_SUMS_4
#undef MAMBA_SUMS_16
#undef MAMBA_SUMS_32
#undef MAMBA_NAMES_32
#undef MAMBA_NAMES_64

// wgmma.fence.
__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// wgmma.commit_group: the products since the last one are a group.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// wgmma.wait_group: all groups but the latest `Latest` are done.
template <int Latest>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Latest) : "memory");
}
// No instruction: the compiler neither moves reads of d up nor writes of it down past this.
template <int Tiles>
__device__ __forceinline__ void hold(float (&d)[Tiles][4]) {
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
#pragma unroll
    for (int k = 0; k < 4; ++k) asm volatile("" : "+f"(d[t][k])::"memory");
  }
}
// fence.proxy.async: what this thread wrote to shared memory comes before products that follow.
__device__ __forceinline__ void fence_for_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// barrier.cta.sync by the 128 threads of a warpgroup, by a number of theirs from 1 to 15.
__device__ __forceinline__ void sync_warpgroup(int barrier) {
  asm volatile("barrier.cta.sync %0, 128;" ::"r"(barrier) : "memory");
}
// stmatrix.x4: where load_matrices() of ptx.cuh would load from.
__device__ __forceinline__ void store_matrices(unsigned to, const std::uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3])
               : "memory");
}

// setmaxnreg: from here on the warps of the warpgroup have so many registers, more or fewer than
// their kernel began with. By the whole warpgroup.
template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

// ---- barriers that count, in shared memory ------------------------------------------------------

// mbarrier.init: a phase ends when `count` threads have arrived and all bytes that were announced.
__device__ __forceinline__ void init_counter(unsigned counter, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(counter), "r"(count) : "memory");
}
// fence.mbarrier_init: what was initialised comes before copies that count there.
__device__ __forceinline__ void fence_counters() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(unsigned counter) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(counter) : "memory");
}
__device__ __forceinline__ void arrive_with_bytes(unsigned counter, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(counter),
               "r"(bytes)
               : "memory");
}
// mbarrier.try_wait.parity: until the phase with this number, modulo 2, has ended.
__device__ __forceinline__ void wait_for_phase(unsigned counter, int phase) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(counter),
      "r"(phase & 1)
      : "memory");
}

// ---- copies of boxes of a tensor ----------------------------------------------------------------

// cp.async.bulk.tensor.3d: the box of `map` at these coordinates, zeros where there is none, to
// shared memory; its bytes arrive at `counter`. By one thread.
__device__ __forceinline__ void copy_box(unsigned to, const CUtensorMap& map, int column, int row,
                                         int batch, unsigned counter) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(batch), "r"(counter)
      : "memory");
}
// The other way, but for what lies outside of the tensor.
__device__ __forceinline__ void store_box(const CUtensorMap& map, int column, int row, int batch,
                                          unsigned from) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];" ::"l"(&map),
      "r"(column), "r"(row), "r"(batch), "r"(from)
      : "memory");
}
// cp.async.bulk.commit_group and wait_group.read: the thread's boxes have been read, so that their
// places can be written to.
__device__ __forceinline__ void end_of_boxes() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
__device__ __forceinline__ void wait_for_boxes() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

}  // namespace mamba::cuda
