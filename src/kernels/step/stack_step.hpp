// The two ways of a step of a stack: all layers in one kernel, and for more rows four kernels a
// layer.
#pragma once

#include "detail/mamba1_step.hpp"

namespace mamba::cuda {

namespace stack {

// With five rows the products' few registers of inputs and one lane in eight of the hand-over cost
// more than the waits between kernels.
constexpr int most_rows = 4;

bool takes(const Mamba1Step& step, const Stream& stream);
void run(const Mamba1Step& step, Stream& stream);

}  // namespace stack

namespace rows {

bool takes(const Mamba1Step& step, const Stream& stream);
void run(const Mamba1Step& step, Stream& stream);

}  // namespace rows

}  // namespace mamba::cuda
