// One step of all layers of a stack, for a device that takes them at once: what the blocks of every
// architecture share. Raw pointers and sizes, which have been checked, passed to kernels by value.
#pragma once

#include <cstdint>

#include <mamba/stream.hpp>

namespace mamba {

struct StackStepSizes {
  static constexpr DType dtype = DType::bf16;  // of x, of conv and of each matrix
  static constexpr int most_layers = 64;
  static constexpr int most_rows = 64;
  static constexpr int d_conv = 4;

  // dt_rank is Mamba-1's. It lies here because the compiler makes another kernel of a step of one
  // row where it comes last, of more instructions, which was 2 to 4 % slower.
  int layer_count, rows, d_model, d_inner, dt_rank;
  int state_rows;
  float epsilon;
  const void* x;  // [rows, d_model], rows x_pitch elements apart
  std::int64_t x_pitch;
  float* sum;                        // [rows, d_model]
  const std::int32_t *read, *write;  // [rows]; may be nullptr
  const std::int32_t* reset;         // [rows], reset_pitch apart; may be nullptr
  std::int64_t reset_pitch;
};

}  // namespace mamba
