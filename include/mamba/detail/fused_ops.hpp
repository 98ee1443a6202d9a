// Operations that a device may compute in one pass.
#pragma once

#include <vector>

#include <mamba/ops.hpp>
#include <mamba/train_ops.hpp>

namespace MAMBA_EXPORT mamba {
namespace detail {

// The same as run(norm), run(product), run(conv), to the bit. Where the norm's y is the product's x
// and the product's y contains the conv's x, a device may compute all three in one pass. Apart from
// these two, no output may therefore overlap an operand of another operation.
void run(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv, Stream& stream);

// The same as run(op) of each, one after the other, but on CUDA in one pass over all tensors, with
// the parts of all of them in one sum. The first clears `y` or does not, as its `accumulate` says,
// the others add to the same y.
void run_all(const std::vector<SumSquares>& ops, Stream& stream);
// All of one step: they differ in their tensors and in weight_decay.
void run_all(const std::vector<AdamWStep>& ops, Stream& stream);

}  // namespace detail
}  // namespace mamba
