// SsdGrad on f32 units, for any head_dim and d_state: products in tiles of 64 x 64, of which each
// of 256 threads has 4 x 4 sums.
#pragma once

#include "kernels/ssd_grad/steps.cuh"

namespace mamba::cuda {

// ---- a product ----------------------------------------------------------------------------------

constexpr int plain_threads = 256;
constexpr int plain_depth = 16;  // of a stage in shared memory
constexpr int plain_pitch = 68;  // floats; rows of whole float4
constexpr int plain_stage = 2 * plain_depth * plain_pitch;

// Along is how an operand lies in memory: whether neighbours in depth are neighbours there, or
// neighbours in row (or column). Blocks load it that way.
enum class Along { depth, rows };

// The operand's 16 x 64 elements from depth k0 on, four to a thread; f(row, depth).
template <Along kAlong>
struct PlainPart {
  float at[4];

  static __device__ int row(int n) {
    const int thread = static_cast<int>(threadIdx.x);
    return kAlong == Along::depth ? thread / 16 + 16 * n : thread % 64;
  }
  static __device__ int deep(int n) {
    const int thread = static_cast<int>(threadIdx.x);
    return kAlong == Along::depth ? thread % 16 : thread / 64 + 4 * n;
  }
  template <class F>
  __device__ void load(int k0, int depth, const F& f) {
#pragma unroll
    for (int n = 0; n < 4; ++n) at[n] = k0 + deep(n) < depth ? f(row(n), k0 + deep(n)) : 0.0f;
  }
  __device__ void store(float* stage) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) stage[deep(n) * plain_pitch + row(n)] = at[n];
  }
};

// sums[r][s] += the sum over k of a(4 ty + r, k) b(4 tx + s, k). By the whole block, which begins
// and ends it with a barrier between it and other accesses to `stage`. Selects: where a is zero the
// product is, whatever b is.
template <Along kA, Along kB, class A, class B>
__device__ __forceinline__ void multiply(float (&sums)[4][4], int depth, bool selects, float* stage,
                                         const A& a, const B& b) {
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
  float *rows = stage, *columns = stage + plain_depth * plain_pitch;
  PlainPart<kA> next_a;
  PlainPart<kB> next_b;
  next_a.load(0, depth, a);
  next_b.load(0, depth, b);
  for (int k0 = 0; k0 < depth; k0 += plain_depth) {
    __syncthreads();
    next_a.store(rows);
    next_b.store(columns);
    __syncthreads();
    if (k0 + plain_depth < depth) {
      next_a.load(k0 + plain_depth, depth, a);
      next_b.load(k0 + plain_depth, depth, b);
    }
#pragma unroll
    for (int k = 0; k < plain_depth; ++k) {
      float x[4], y[4];
      load_floats<4>(rows + k * plain_pitch + 4 * ty, x);
      load_floats<4>(columns + k * plain_pitch + 4 * tx, y);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (selects && x[r] == 0) continue;
#pragma unroll
        for (int s = 0; s < 4; ++s) sums[r][s] = fmaf(x[r], y[s], sums[r][s]);
      }
    }
  }
}

__device__ __forceinline__ void clear(float (&sums)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] = 0;
}
__device__ __forceinline__ void add_to(float (&sums)[4][4], const float (&other)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) sums[i / 4][i % 4] += other[i / 4][i % 4];
}
// Rows times weight(row); a row whose weight is zero is zero.
template <class F>
__device__ __forceinline__ void scale_rows(float (&sums)[4][4], const F& weight) {
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const float w = weight(4 * (static_cast<int>(threadIdx.x) / 16) + r);
#pragma unroll
    for (int s = 0; s < 4; ++s) sums[r][s] = w == 0 ? 0 : w * sums[r][s];
  }
}

// ---- elements of a chunk ------------------------------------------------------------------------

// [64 steps, columns] of a view, zero behind the last step and column.
template <class T>
struct PlainRows {
  const T* data;
  std::int64_t pitch;
  int steps, columns;

  __device__ PlainRows(const ScanTrack& track, std::int64_t b, const SsdGradChunk& chunk,
                       std::int64_t column, int count)
      : data(track.at<T>(b, chunk.start) + column),
        pitch(track.step_pitch),
        steps(chunk.steps),
        columns(count) {}
  __device__ float operator()(int i, int column) const {
    return i < steps && column < columns ? to_float(data[i * pitch + column]) : 0.0f;
  }
};
// The state or adjoint of a head: [head_dim, d_state].
struct PlainState {
  const float* data;
  int head_dim, d_state;

  __device__ float operator()(int p, int n) const {
    return p < head_dim && n < d_state ? data[std::int64_t{p} * d_state + n] : 0.0f;
  }
};

// In scratch: states of the chunks before which the forward run kept none, adjoints of all.
struct SsdPlain {
  static __device__ float* state(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                 int head) {
    const std::int64_t k = c / op.per_kept;
    if (c == k * op.per_kept) return nullptr;
    const std::int64_t slots = op.chunks - op.kept;
    return static_cast<float*>(op.states) +
           ((row * slots + c - k - 1) * op.heads + head) * op.state_size();
  }
  static __device__ float* adjoint(const SsdGradOperands& op, std::int64_t row, std::int64_t c,
                                   int head) {
    return static_cast<float*>(op.adjoints) + op.at_head(row, c, head) * op.state_size();
  }
  static __device__ const float* state_before(const SsdGradOperands& op, std::int64_t row,
                                              std::int64_t c, int head) {
    const float* found = state(op, row, c, head);
    return found == nullptr ? op.kept_state(row, c, head) : found;
  }
};

// ---- from chunk to chunk ------------------------------------------------------------------------

// A tile of 64 x 64 of a head's state, walked forward from a kept state to the next one, or of its
// adjoint, walked back from the end of the sequence to its start.
template <class T>
class PlainWalk {
 public:
  __device__ PlainWalk(const SsdGradOperands& op, std::int64_t row, int head, int tile,
                       float* memory)
      : op_(op), row_(row), b_(op.first_row + row), head_(head), memory_(memory) {
    const int across = (op.d_state + 63) / 64;
    p_ = tile / across * 64;
    n_ = tile % across * 64;
  }

  __device__ void states(std::int64_t k) {
    const std::int64_t first = k * op_.per_kept;
    const std::int64_t last = min(first + op_.per_kept, op_.chunks) - 1;
    load(op_.kept_state(row_, first, head_));
    for (std::int64_t c = first; c < last; ++c) {
      const SsdGradSteps steps = op_.steps_of(row_, c, head_);
      step(c, op_.x, op_.B, steps.from_start(ssd_chunk - 1),
           [&](int i) { return steps.weight(i); });
      store(SsdPlain::state(op_, row_, c + 1, head_));
    }
  }
  __device__ void adjoints() {
    const std::int64_t whole = (b_ * op_.heads + head_) * op_.state_size();
    if (op_.dfinal != nullptr) load(op_.dfinal + whole);
    for (std::int64_t c = op_.chunks - 1; c >= 0; --c) {
      store(SsdPlain::adjoint(op_, row_, c, head_));
      const SsdGradSteps steps = op_.steps_of(row_, c, head_);
      step(c, op_.dy, op_.C, steps.from_start(ssd_chunk - 1),
           [&](int i) { return steps.from_start(i); });
    }
    if (op_.dinitial != nullptr) store(op_.dinitial + whole);
  }

 private:
  // state = decay state + sum over i of weight(i) channels[i] states[i]^T
  template <class F>
  __device__ void step(std::int64_t c, const ScanTrack& channels, const ScanTrack& states,
                       float decay, const F& weight) {
    const SsdGradChunk chunk = op_.chunk(c);
    const std::int64_t group = head_ / op_.group_heads();
    const PlainRows<T> x(channels, b_, chunk, std::int64_t{head_} * op_.head_dim + p_,
                         op_.head_dim - p_);
    const PlainRows<T> B(states, b_, chunk, group * op_.d_state + n_, op_.d_state - n_);
    scale_rows(state_, [decay](int) { return decay; });
    multiply<Along::rows, Along::rows>(
        state_, chunk.steps, true, memory_,
        [&](int p, int i) {
          const float w = weight(i);
          return w == 0 ? 0 : w * x(i, p);
        },
        [&](int n, int i) { return B(i, n); });
  }
  template <class F>
  __device__ void each(const F& f) {
    const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int p = p_ + 4 * ty + r, n = n_ + 4 * tx + s;
        if (p < op_.head_dim && n < op_.d_state) {
          f(std::int64_t{p} * op_.d_state + n, state_[r][s]);
        }
      }
    }
  }
  __device__ void load(const float* from) {
    each([from](std::int64_t at, float& value) { value = from[at]; });
  }
  __device__ void store(float* to) {
    each([to](std::int64_t at, float value) { to[at] = value; });
  }

  const SsdGradOperands& op_;
  const std::int64_t row_, b_;
  const int head_;
  int p_, n_;
  float* memory_;
  float state_[4][4] = {};
};

// Blocks of the adjoints, which walk longest, come first.
template <class T>
__global__ void __launch_bounds__(plain_threads)
    ssd_grad_plain_walk_kernel(const __grid_constant__ SsdGradOperands op, const int tiles) {
  __shared__ __align__(16) float memory[plain_stage];
  const std::int64_t all = op.rows * op.heads * tiles;
  const std::int64_t walk = blockIdx.x / all, at = blockIdx.x - walk * all;
  const std::int64_t row = at / (op.heads * tiles), in_row = at - row * op.heads * tiles;
  const auto head = static_cast<int>(in_row / tiles), tile = static_cast<int>(in_row % tiles);
  PlainWalk<T> block(op, row, head, tile, memory);
  if (walk == 0) {
    block.adjoints();
  } else {
    block.states(walk - 1);
  }
}

}  // namespace mamba::cuda
