// A CausalConv as kernels see it: raw pointers and pitches, passed by value.
#pragma once

#include <cstdint>

#include <mamba/ops.hpp>

#include "detail/stream_access.hpp"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda::conv {

template <class T>
struct Operands {
  const T* x;  // [batch, time, channels]
  std::int64_t x_row, x_step;
  const float* weight;  // [channels, past + 1]
  std::int64_t weight_row;
  const float* bias;          // [channels]; may be nullptr
  const T* initial;           // [state_rows, channels, past]; may be nullptr
  T* final_state;             // the same
  const std::int32_t* read;   // [batch]; may be nullptr
  const std::int32_t* write;  // [batch]; may be nullptr
  std::int64_t state_rows;
  const std::int32_t* reset;  // [batch, time]; may be nullptr
  std::int64_t reset_row;
  T* states;  // [batch, time, channels, past]; may be nullptr
  std::int64_t states_row, states_step;
  T* y;  // [batch, time, channels]
  std::int64_t y_row, y_step;
  std::int64_t batch, time, channels;
  int past;  // width - 1
  bool silu;
  bool wide_weights;  // weight and bias may be read 16 bytes at a time
  int* bad_row;
};

template <class T>
Operands<T> operands(const CausalConv& op, Stream& stream) {
  Operands<T> o{};
  o.x = op.x.data<T>();
  o.x_row = op.x.row_pitch();
  o.x_step = op.x.step_pitch();
  o.weight = op.weight.data<float>();
  o.weight_row = op.weight.row_pitch();
  o.bias = op.bias ? op.bias.data<float>() : nullptr;
  o.initial = op.initial_state ? op.initial_state.data<T>() : nullptr;
  o.final_state = op.final_state ? op.final_state.data<T>() : nullptr;
  o.read = op.rows.read ? op.rows.read.data<std::int32_t>() : nullptr;
  o.write = op.rows.write ? op.rows.write.data<std::int32_t>() : nullptr;
  o.state_rows = op.initial_state ? op.initial_state.dim(0)
                 : op.final_state ? op.final_state.dim(0)
                                  : op.x.dim(0);
  o.reset = op.reset ? op.reset.data<std::int32_t>() : nullptr;
  o.reset_row = op.reset ? op.reset.row_pitch() : 0;
  o.states = op.step_states ? op.step_states.data<T>() : nullptr;
  o.states_row = op.step_states ? op.step_states.row_pitch() : 0;
  o.states_step = op.step_states ? op.step_states.step_pitch() : 0;
  o.y = op.y.data<T>();
  o.y_row = op.y.row_pitch();
  o.y_step = op.y.step_pitch();
  o.batch = op.x.dim(0);
  o.time = op.x.dim(1);
  o.channels = op.x.dim(2);
  o.past = static_cast<int>(op.weight.dim(1)) - 1;
  o.silu = op.silu;
  o.wide_weights = is_aligned(o.weight, o.weight_row * 4, 16);
  o.bad_row = StreamAccess::flag(stream, BadValue::state_row);
  return o;
}

}  // namespace mamba::cuda::conv
