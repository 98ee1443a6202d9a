// How a Matmul is computed on the CPU.
#pragma once

#include <mamba/ops.hpp>

#include "host/ops/matmul/gemm.hpp"

namespace mamba::host {

enum class MatmulPlan {
  gemv,           // up to 8 rows, as they come: threads share the output columns
  gemm_few_rows,  // the rows are packed and the weights read once: threads share the output columns
  gemm_few_columns,  // the rows are packed in blocks: threads share the rows
  gemm_columns,      // the weights are packed, threads share the output columns
  gemm_rows,         // the weights are packed, threads share the rows
};

MatmulPlan plan(const Matmul& op);
bool can_run(const Matmul& op, MatmulPlan plan);
// How a gemm multiplies; a gemv always in f32.
Words words_of(const Matmul& op);
bool can_run(const Matmul& op, Words words);
void run(const Matmul& op, Stream& stream, MatmulPlan plan, Words words);

}  // namespace mamba::host
