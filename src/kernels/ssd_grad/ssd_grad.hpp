// Which kernels run an SsdGrad on CUDA, for its dispatch and for tests. Plain C++.
#pragma once

#include <mamba/grad_ops.hpp>

#include "detail/limits.hpp"

namespace mamba::cuda {

// plain  products on f32 units, any case
// mma    on tensor cores: bf16, head_dim up to 64, d_state up to 128, rows of whole 16 bytes. Not
//        f16, which has no room for states and adjoints
enum class SsdGradPlan { plain, mma };

bool can_run(const SsdGrad& op, SsdGradPlan plan, const Limits& device);
// The plan run() takes on such a device.
SsdGradPlan plan(const SsdGrad& op, const Limits& device);

// What the states and adjoints of batch rows that are computed at the same time may take, about. It
// is enough for those of 8 rows of 2048 steps of a 2.7b layer in bf16, so that few blocks are the
// last ones; a row is always computed whole.
constexpr std::int64_t ssd_grad_scratch = std::int64_t{768} << 20;  // bytes
// run() with another plan; one that cannot do it is an ArgumentError.
void run_ssd_grad(const SsdGrad& op, Stream& stream, SsdGradPlan plan,
                  std::int64_t scratch_bytes = ssd_grad_scratch);

}  // namespace mamba::cuda
