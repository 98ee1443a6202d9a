// One step of Mamba-1 blocks one after the other, for a device that takes them at once.
#pragma once

#include "detail/stack_step.hpp"

namespace mamba {

struct Mamba1StepSizes : StackStepSizes {
  static constexpr int d_state = 16;
};
// residual = x;  for each block: residual += block(norm(residual));  sum = residual.
// States go on in place, by the row map if there is one (see RowMap); a padding row's sum is its x.
struct Mamba1Step : Mamba1StepSizes {
  struct Block {
    const float* norm;         // [d_model]
    const void* in_proj;       // [2 d_inner, d_model]
    const float* conv_weight;  // [d_inner, d_conv]
    const float* conv_bias;    // [d_inner]; may be nullptr
    const void* x_proj;        // [dt_rank + 2 d_state, d_inner]
    const void* dt_proj;       // [d_inner, dt_rank]
    const float* dt_bias;      // [d_inner]
    const float* A_log;        // [d_inner, d_state]
    const float* D;            // [d_inner]
    const void* out_proj;      // [d_model, d_inner]
    void* conv;                // [state_rows, d_inner, d_conv - 1]
    float* ssm;                // [state_rows, d_inner, d_state]
  };
  Block layers[most_layers];
};

namespace cuda {

// Whether run() takes a step of these sizes on the stream's device. Looks at no pointer.
bool takes(const Mamba1Step& step, const Stream& stream);
void run(const Mamba1Step& step, Stream& stream);

}  // namespace cuda

}  // namespace mamba
