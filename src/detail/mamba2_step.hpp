// One step of Mamba-2 blocks one after the other, for a device that takes them at once.
#pragma once

#include "detail/stack_step.hpp"

namespace mamba {

// One group: every head has the same B and C, and the norm is over all channels.
struct Mamba2StepSizes : StackStepSizes {
  int heads, d_state;
  bool gate_first;
  float gated_epsilon;    // of the norm before out_proj
  float dt_low, dt_high;  // what softplus(dt) is clamped to

  int conv_channels() const { return d_inner + 2 * d_state; }
};
// residual = x;  for each block: residual += block(norm(residual));  sum = residual.
// States go on in place, by the row map if there is one (see RowMap); a padding row's sum is its x.
struct Mamba2Step : Mamba2StepSizes {
  struct Block {
    const float* norm;         // [d_model]
    const void* in_proj;       // [d_inner + conv_channels + heads, d_model]: z, x, B, C, dt
    const float* conv_weight;  // [conv_channels, d_conv]
    const float* conv_bias;    // [conv_channels]; may be nullptr
    const float* dt_bias;      // [heads]
    const float* A_log;        // [heads]
    const float* D;            // [heads]
    const float* gated_norm;   // [d_inner]
    const void* out_proj;      // [d_model, d_inner]
    void* conv;                // [state_rows, conv_channels, d_conv - 1]
    float* ssm;                // [state_rows, d_inner, d_state]
  };
  Block layers[most_layers];
};

namespace cuda {

// Whether run() takes a step of these sizes on the stream's device. Looks at no pointer.
bool takes(const Mamba2Step& step, const Stream& stream);
void run(const Mamba2Step& step, Stream& stream);

}  // namespace cuda

}  // namespace mamba
