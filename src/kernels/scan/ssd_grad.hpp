// Which kernels run an SsdGrad on CUDA, for its dispatch and for tests. Plain C++.
#pragma once

#include <mamba/grad_ops.hpp>

namespace mamba::cuda {

// plain  products on f32 units, any case
enum class SsdGradPlan { plain };

bool can_run(const SsdGrad& op, SsdGradPlan plan);
SsdGradPlan plan(const SsdGrad& op);

// run() with another plan, which can do it. `scratch_bytes`: about what the states and adjoints of
// the batch rows that are computed at the same time may take; one row is always computed.
constexpr std::int64_t ssd_grad_scratch = std::int64_t{256} << 20;
void run_ssd_grad(const SsdGrad& op, Stream& stream, SsdGradPlan plan,
                  std::int64_t scratch_bytes = ssd_grad_scratch);

}  // namespace mamba::cuda
