// The outputs of a batch row that has no state (see StateRow): zeros for padding, NaN for a row
// that does not exist.
#pragma once

#include "kernels/gpu/vec.cuh"
#include "kernels/ssd/ssd_operands.cuh"

namespace mamba::cuda {

// By a whole block, for channels p0 to p0 + channels of a head.
template <class T>
__device__ void fill_absent(const SsdOperands& op, const StateRow<>& rows, std::int64_t b, int head,
                            int p0, int channels) {
  const float value = rows.bad ? __int_as_float(0x7fffffff) : 0;
  const auto thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (rows.bad && thread == 0 && op.flag != nullptr) *op.flag = 1;
  const std::int64_t first = op.channel(head) + p0;
  const int states = channels * op.d_state;
  for (std::int64_t t = 0; t < op.time; ++t) {
    T* y = op.y.out<T>(b, t) + first;
    for (int p = thread; p < channels; p += threads) y[p] = from_float<T>(value);
    if (op.step_states.data == nullptr) continue;
    float* h = op.step_states.out<float>(b, t) + first * op.d_state;
    for (int i = thread; i < states; i += threads) h[i] = value;
  }
  for (std::int64_t k = 0; k < op.chunks; ++k) {
    float* h = op.chunk_states + op.state(b * op.chunks + k, head, p0);
    for (int i = thread; i < states; i += threads) h[i] = value;
  }
}

}  // namespace mamba::cuda
