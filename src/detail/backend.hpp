// The two implementations behind run(op, stream), called once the operands are known to be good.
#pragma once

#include <mamba/ops.hpp>

namespace mamba::host {
void run(const Matmul& op, Stream& stream);
void run(const CausalConv& op, Stream& stream);
void run(const SelectiveScan& op, Stream& stream);
void run(const AddRmsNorm& op, Stream& stream);
void run(const Embedding& op, Stream& stream);
void run(const Sample& op, Stream& stream);
void run(const CopyRows& op, Stream& stream);
void run(const ZeroRows& op, Stream& stream);
}  // namespace mamba::host
