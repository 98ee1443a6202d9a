// The tensor cores' product of 16-bit operands.
#pragma once

#include <cstdint>
#include <type_traits>

#include <mamba/dtype.hpp>

namespace mamba::cuda {

// d[16 x 8] += a[16 x 16] b[16 x 8]: bf16 or f16 products, f32 sums. Lane 4 g + q has, of a, rows g
// and g + 8 at two pairs of depths (a0: row g, first pair; a1: row g + 8, first pair; a2 and a3:
// the second pair), of b column g at the same pairs (b0, b1), and of d rows g (d[0], d[1]) and g +
// 8 (d[2], d[3]) in columns 2 q and 2 q + 1.
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

}  // namespace mamba::cuda
