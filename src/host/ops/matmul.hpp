// How a Matmul is computed on the CPU.
#pragma once

#include <mamba/ops.hpp>

namespace mamba::host {

enum class MatmulPlan {
  gemv,          // up to 8 rows: our own kernel, threads share the output columns
  gemm_columns,  // BLIS, threads share the output columns
  gemm_rows,     // BLIS, threads share the rows of x
};

MatmulPlan plan(const Matmul& op);
bool can_run(const Matmul& op, MatmulPlan plan);
void run(const Matmul& op, Stream& stream, MatmulPlan plan);

}  // namespace mamba::host
