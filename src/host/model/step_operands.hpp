// What a step of a whole stack passes to kernels, whatever the architecture.
#pragma once

#include <cstdint>

#include <mamba/stack.hpp>

#include "detail/stack_step.hpp"

namespace mamba {

// The sizes that all architectures have. false: no kernel takes such a step.
inline bool step_sizes(const Stack& stack, const ConstTensorView& x, const Stream& stream,
                       StackStepSizes& to) {
  if (stream.device().is_cpu() || x.dtype() != StackStepSizes::dtype) return false;
  if (x.dim(0) > StackStepSizes::most_rows) return false;
  if (stack.size() > StackStepSizes::most_layers) return false;
  if (reinterpret_cast<std::uintptr_t>(x.data()) % 4 != 0 || x.row_pitch() % 2 != 0) return false;
  const LayerConfig& c = stack.layer(0).config();
  if (c.use_bias || c.d_conv != StackStepSizes::d_conv) return false;
  to.layer_count = static_cast<int>(stack.size());
  to.rows = static_cast<int>(x.dim(0));
  to.d_model = static_cast<int>(c.d_model);
  to.d_inner = static_cast<int>(c.d_inner);
  return true;
}

inline void step_operands(float norm_epsilon, const ConstTensorView& x, const StackState& state,
                          const TensorView& sum, const RowMap& rows, const ConstTensorView& reset,
                          StackStepSizes& to) {
  const auto ids = [](const ConstTensorView& view) {
    return view ? view.data<std::int32_t>() : nullptr;
  };
  to.state_rows = static_cast<int>(state.batch());
  to.epsilon = norm_epsilon;
  to.x = x.data();
  to.x_pitch = x.row_pitch();
  to.sum = sum.data<float>();
  to.read = ids(rows.read);
  to.write = ids(rows.write);
  to.reset = ids(reset);
  to.reset_pitch = reset ? reset.row_pitch() : 0;
}

inline const void* step_matrix(const Tensor& tensor) { return tensor.view().data(); }
inline const float* step_floats(const Tensor& tensor) {
  return tensor ? tensor.data<float>() : nullptr;
}

}  // namespace mamba
