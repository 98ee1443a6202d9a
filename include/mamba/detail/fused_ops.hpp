// Operations that a device may compute in one pass.
#pragma once

#include <mamba/ops.hpp>

namespace mamba::detail {

// The same as run(norm), run(product), run(conv), to the bit. Where the norm's y is the product's x
// and the product's y contains the conv's x, a device may compute all three in one pass. Apart from
// these two, no output may therefore overlap an operand of another operation.
void run(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv, Stream& stream);

}  // namespace mamba::detail
