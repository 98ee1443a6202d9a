// How a Matmul is computed on CUDA.
#pragma once

#include <mamba/ops.hpp>

namespace mamba::cuda {

enum class MatmulPlan {
  gemv,    // few rows: our own kernels, each weight read once for all of them
  skinny,  // some tens of rows, 16-bit: our own kernel on the tensor cores
  blaslt,  // cuBLASLt
  tiled,   // our own plain kernel, for what cuBLASLt does not take
};

// From the shape, the dtypes and the alignment of the operands alone.
MatmulPlan plan(const Matmul& op);
// Whether a plan can do it at all. cuBLASLt may still find no algorithm for unusual pitches; the
// tiled kernel then takes its place, in every call alike.
bool can_run(const Matmul& op, MatmulPlan plan);
void run(const Matmul& op, Stream& stream, MatmulPlan plan);

constexpr std::int64_t gemv_max_rows = 8;
constexpr std::int64_t gemv_max_in = std::int64_t{1} << 30;  // it counts them in ints
std::int64_t gemv_good_rows(const Matmul& op);               // up to how many it is the fastest
void gemv(const Matmul& op, Stream& stream);

constexpr std::int64_t skinny_max_rows = 64;
bool skinny_can_run(const Matmul& op);
bool skinny_is_good(const Matmul& op);  // whether it is the fastest, where gemv is not
void skinny(const Matmul& op, Stream& stream);

}  // namespace mamba::cuda
