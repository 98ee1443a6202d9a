// A step of some tens of rows through a block: what its kernels share, and what becomes of the sums
// of its two large products (see rows_step.cu and mamba2_step.cu).
#pragma once

#include "kernels/matmul/skinny.cuh"
#include "kernels/step/stack_channel.cuh"

namespace mamba::cuda::rows {

using stack::state_row;
using T = bf16;

constexpr int square_columns = 16;  // whose squares are added up
// Neighbouring columns of a thread that ends sums: of few rows few, so that many threads do it.
constexpr int columns_of_thread(int rows) { return rows < 16 ? 1 : rows < 32 ? 2 : 8; }

// The convolution of a layer's step: some neighbouring columns of in_proj.
struct StepConv {
  const float *weight, *bias;  // [channels, d_conv], [channels]; bias may be nullptr
  T* state;                    // [state_rows, channels, past]
  T* y;                        // [rows, channels]
  int first, channels;         // of in_proj's columns
};

// One layer's step. In memory of the step's own: what the blocks of a kernel have made and all
// blocks of the next one read.
template <class Sizes>
struct StepOperands {
  Sizes step;
  StepConv conv;
  const float* next_norm;  // [d_model]: of the layer after it; nullptr: there is none
  T* normed;               // [rows, d_model]: the residual times the norm's weight
  float* squares;          // [rows, d_model / square_columns]: of the residual
  int* bad_row;

  __device__ __forceinline__ int parts() const { return step.d_model / square_columns; }
  // The residual of V columns, and what the next in_proj reads of it. By whole warps, of which
  // neighbouring lanes have neighbouring columns of a row.
  template <int V>
  __device__ __forceinline__ void leave(bool there, int row, int column, const float (&residual)[V],
                                        const float (&weight)[V]) const {
    float square = 0;
#pragma unroll
    for (const float one : residual) square = fmaf(one, one, square);
#pragma unroll
    for (int apart = 1; apart < square_columns / V; apart *= 2) {
      square += __shfl_xor_sync(all_lanes, square, apart);
    }
    if (!there) return;
    const std::int64_t at = std::int64_t{row} * step.d_model + column;
    constexpr int F = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += F) {
      store_floats<F>(step.sum + at + i, reinterpret_cast<const float(&)[F]>(residual[i]));
    }
    if (next_norm == nullptr) return;
    float scaled[V];
#pragma unroll
    for (int i = 0; i < V; ++i) scaled[i] = residual[i] * weight[i];
    store_floats<V>(normed + at, scaled);
    if (column % square_columns == 0) {
      squares[row * parts() + column / square_columns] = square;
    }
  }
};

// Mamba-1's.
struct Operands : StepOperands<Mamba1StepSizes> {
  Mamba1Step::Block layer;
  T *z, *y;      // [rows, d_inner]
  T* selection;  // [rows, dt_rank + 2 d_state]

  // Where a column of in_proj that is not convolved goes.
  __device__ __forceinline__ T* beside(std::int64_t row, int column) const {
    return z + row * step.d_inner + column - step.d_inner;
  }
};

// The factors of a norm over the rows' squares, [rows, parts], by all threads of a block.
template <int Rows, int Threads>
__device__ __forceinline__ void norm_factors(const float* squares, int parts, int rows,
                                             float channels, float epsilon, float* factors) {
  constexpr int each = Threads / Rows;  // threads of a row, neighbours in a warp
  static_assert(each <= 32);
  const int row = static_cast<int>(threadIdx.x) / each;
  const int lane = static_cast<int>(threadIdx.x) % each;
  float sum = 0;
  if (row < rows) {
    // Four at a time and all of them on their way: each load takes hundreds of clocks.
    const auto* from = squares + row * parts;
    const int whole = parts % 4 == 0 ? parts : 0;  // else rows are not aligned
#pragma unroll 5
    for (int i = lane * 4; i < whole; i += each * 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      sum += (four.x + four.y) + (four.z + four.w);
    }
    for (int i = whole + lane; i < parts; i += each) sum += from[i];
  }
#pragma unroll
  for (int apart = each / 2; apart > 0; apart /= 2) {
    sum += __shfl_xor_sync(all_lanes, sum, apart);
  }
  if (lane == 0) factors[row] = rsqrtf(fmaf(sum, 1 / channels, epsilon));
}

template <int V>
__device__ __forceinline__ void load_columns(const float* from, float (&to)[V]) {
  constexpr int F = V < 4 ? V : 4;
#pragma unroll
  for (int i = 0; i < V; i += F) {
    load_floats<F>(from + i, reinterpret_cast<float(&)[F]>(to[i]));
  }
}

// in_proj's sums: what the norm divides all of a row by, then the convolution of a channel, or what
// is not convolved as it is. A norm's factor is the same for all of a row, so it can wait until
// after the product.
template <class Op, int Rows, int Threads>
struct ConvEnd {
  static constexpr int together = columns_of_thread(Rows);
  static constexpr bool next_waits = true;  // for the scan to read states early
  static constexpr int past = stack::past;
  using Words = typename Packed<T, together>::Words;
  struct Early {
    int write;           // the state row
    Words before[past];  // [channel][step]
  };
  const Op& op;
  float* factors;  // [Rows], in shared memory

  __device__ __forceinline__ void prepare() const {
    norm_factors<Rows, Threads>(op.squares, op.parts(), op.step.rows,
                                static_cast<float>(op.step.d_model), op.step.epsilon, factors);
  }
  __device__ __forceinline__ T* state(int row, int channel) const {
    return op.conv.state + (std::int64_t{row} * op.conv.channels + channel) * past;
  }
  __device__ __forceinline__ bool convolves(int channel) const {
    return static_cast<unsigned>(channel) < static_cast<unsigned>(op.conv.channels);
  }
  __device__ __forceinline__ Early load(std::int64_t row, std::int64_t column) const {
    Early early{};
    const int c = static_cast<int>(column) - op.conv.first;
    if (!convolves(c)) return early;
    const StateRow<int> rows = state_row(op.step, static_cast<int>(row));
    early.write = rows.write;
    if (rows.read >= 0) {
      const auto* from = reinterpret_cast<const Words*>(state(rows.read, c));
#pragma unroll
      for (int i = 0; i < past; ++i) early.before[i] = from[i];
    }
    return early;
  }
  __device__ __forceinline__ void finish(bool there, std::int64_t row, std::int64_t column,
                                         float (&sum)[together], const Early& early) const {
    if (!there) return;
    const int c = static_cast<int>(column) - op.conv.first;
    const float factor = factors[row];
#pragma unroll
    for (float& one : sum) one *= factor;
    if (!convolves(c)) {
      return store_floats<together>(op.beside(row, static_cast<int>(column)), sum);
    }
    T states[together * past];
    memcpy(states, early.before, sizeof(states));
    float u[together], bias[together] = {};
    if (op.conv.bias != nullptr) load_columns(op.conv.bias + c, bias);
#pragma unroll
    for (int i = 0; i < together; ++i) {
      T* before = states + i * past;
      stack::Filter filter;
      filter.weight = load_vec<past + 1>(op.conv.weight + (c + i) * (past + 1));
      filter.bias = bias[i];
#pragma unroll
      for (int k = 0; k < past; ++k) filter.before[k] = before[k];
      const T x = from_float<T>(sum[i]);
      u[i] = filter.convolve(x);
#pragma unroll
      for (int k = 0; k < past; ++k) before[k] = k + 1 < past ? before[k + 1] : x;
    }
    store_floats<together>(op.conv.y + row * op.conv.channels + c, u);
    if (early.write < 0) return;
    auto* to = reinterpret_cast<Words*>(state(early.write, c));
    Words words[past];
    memcpy(words, states, sizeof(states));
#pragma unroll
    for (int i = 0; i < past; ++i) to[i] = words[i];
  }
};

// out_proj's sums are added to the residual. NormFactors: of a norm before the product.
struct NoFactors {
  __device__ __forceinline__ void prepare() const {}
  __device__ __forceinline__ float of(std::int64_t) const { return 1; }
};
template <class Op, int Rows, class Factors = NoFactors>
struct ResidualEnd {
  static constexpr int together = columns_of_thread(Rows);
  static constexpr bool next_waits = false;
  struct Early {
    float residual[together], weight[together];
    bool adds, bad;
  };
  const Op& op;
  Factors factors = {};

  __device__ __forceinline__ void prepare() const { factors.prepare(); }
  __device__ __forceinline__ Early load(std::int64_t row, std::int64_t column) const {
    const StateRow<int> state = state_row(op.step, static_cast<int>(row));
    Early early{};
    early.adds = !state.padding;
    early.bad = state.bad;
    load_columns(op.step.sum + row * op.step.d_model + column, early.residual);
    if (op.next_norm != nullptr) load_columns(op.next_norm + column, early.weight);
    return early;
  }
  __device__ __forceinline__ void finish(bool there, std::int64_t row, std::int64_t column,
                                         float (&sum)[together], const Early& early) const {
    const float factor = there ? factors.of(row) : 0;
#pragma unroll
    for (int i = 0; i < together; ++i) {
      sum[i] = !there       ? 0
               : early.adds ? fmaf(sum[i], factor, early.residual[i])
                            : early.residual[i];
      if (early.bad) sum[i] = __int_as_float(0x7fffffff);
    }
    op.leave(there, static_cast<int>(row), static_cast<int>(column), sum, early.weight);
  }
};

}  // namespace mamba::cuda::rows
