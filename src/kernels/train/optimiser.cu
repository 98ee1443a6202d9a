// SumSquares and AdamWStep: what an optimiser does with every element.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

// ---- many tensors in one launch -----------------------------------------------------------------

constexpr int threads = 256;
constexpr std::int64_t part = 4096;  // elements of a tensor that a block takes

// As many as kernel parameters have room for, in 4 KiB. A block has a part of one of them.
template <class Operands>
struct TensorList {
  static constexpr int most = 60;
  int count = 0;
  unsigned first_block[most + 1] = {};
  Operands of[most];

  unsigned blocks() const { return first_block[count]; }
  void add(const Operands& operands, std::int64_t elements) {
    of[count] = operands;
    first_block[count + 1] = first_block[count] + static_cast<unsigned>(divide_up(elements, part));
    ++count;
  }
  // Which of them this block has, and from which element on.
  __device__ __forceinline__ int find(std::int64_t& first) const {
    int low = 0, high = count;  // it is one of low .. high - 1
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (blockIdx.x < first_block[middle] ? high : low) = middle;
    }
    first = static_cast<std::int64_t>(blockIdx.x - first_block[low]) * part;
    return low;
  }
};

// ---- the sum of squares -------------------------------------------------------------------------

struct Summed {
  const float* x;
  std::int64_t count;
};

// What a block adds up: 16 elements, squared or not, in each thread, then a tree. The sum is the
// first thread's.
__device__ __forceinline__ float sum_of_part(const Summed& op, std::int64_t first, bool squares) {
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::int64_t at = first + threadIdx.x + (i * 4 + k) * threads;
      const float value = at < op.count ? op.x[at] : 0;
      sums[k] = squares ? fmaf(value, value, sums[k]) : sums[k] + value;
    }
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  __shared__ float warps[threads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(all_lanes, sum, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return 0;
#pragma unroll
  for (int half = threads / 64; half > 0; half /= 2) {
#pragma unroll
    for (int w = 0; w < half; ++w) warps[w] += warps[w + half];
  }
  return warps[0];
}
// parts[b] = the sum of squares of the part that block b has.
__global__ void __launch_bounds__(threads)
    sum_squares_kernel(const __grid_constant__ TensorList<Summed> list, float* parts) {
  std::int64_t first;
  const int tensor = list.find(first);
  const float sum = sum_of_part(list.of[tensor], first, true);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
// The sums of parts of x; where one part is all, that goes to, or is added to, y.
__global__ void __launch_bounds__(threads)
    sum_part_kernel(const Summed op, float* parts, float* y, bool accumulate) {
  const float sum = sum_of_part(op, blockIdx.x * part, false);
  if (threadIdx.x != 0) return;
  if (gridDim.x > 1) {
    parts[blockIdx.x] = sum;
  } else {
    *y = accumulate ? *y + sum : sum;
  }
}

// ---- the step -----------------------------------------------------------------------------------

template <class T>
struct AdamTensor {
  float* weight;
  T* stored;  // may be nullptr
  const float* gradient;
  float *m, *v;
  std::int64_t count;
  float decay;
  bool wide;  // all begin where four elements can be read at once
};

struct Adam {
  const float* squares;  // may be nullptr
  float max_norm, loss_scale, learning_rate, beta1, beta2, epsilon;
  float m_correction, v_correction;  // 1 / (1 - beta^step)

  // New values in place of m, v and weight. Roundings are spelled out, so that a tensor gets the
  // same bits wherever it lies.
  __device__ __forceinline__ void step(float gradient, float& m, float& v, float& weight,
                                       float scale, float decay) const {
    const float g = __fmul_rn(scale, gradient);
    m = __fmaf_rn(beta1, m, __fmul_rn(1 - beta1, g));
    v = __fmaf_rn(beta2, v, __fmul_rn(__fmul_rn(1 - beta2, g), g));
    const float spread = __fsqrt_rn(__fmul_rn(v, v_correction));
    const float direction = __fdiv_rn(__fmul_rn(m, m_correction), __fadd_rn(spread, epsilon));
    weight = __fmaf_rn(-learning_rate, __fmaf_rn(decay, weight, direction), weight);
  }
};

// N elements from `at` on.
template <int N, class T>
__device__ __forceinline__ void step_at(const Adam& op, const AdamTensor<T>& t, std::int64_t at,
                                        float scale) {
  const auto g = load_vec<N>(t.gradient + at);
  auto m = load_vec<N>(t.m + at), v = load_vec<N>(t.v + at), w = load_vec<N>(t.weight + at);
  Vec<T, N> stored;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    op.step(g.at[i], m.at[i], v.at[i], w.at[i], scale, t.decay);
    stored.at[i] = from_float<T>(w.at[i]);
  }
  store_vec(t.m + at, m);
  store_vec(t.v + at, v);
  store_vec(t.weight + at, w);
  if (t.stored != nullptr) store_vec(t.stored + at, stored);
}

template <class T>
__global__ void __launch_bounds__(threads)
    adamw_kernel(const Adam op, const __grid_constant__ TensorList<AdamTensor<T>> list) {
  float scale = 1;
  if (op.squares != nullptr) {
    const float squares = *op.squares;
    if (!isfinite(squares)) return;
    if (op.max_norm > 0) scale = fminf(1, op.max_norm * op.loss_scale / sqrtf(squares));
  }
  scale /= op.loss_scale;
  std::int64_t first;
  const AdamTensor<T>& t = list.of[list.find(first)];
  if (t.wide && first + part <= t.count) {
#pragma unroll 2
    for (int i = 0; i < part; i += 4 * threads) {
      step_at<4>(op, t, first + i + 4 * static_cast<int>(threadIdx.x), scale);
    }
    return;
  }
  const std::int64_t last = min(first + part, t.count);
#pragma unroll 1
  for (std::int64_t i = first + threadIdx.x; i < last; i += threads) step_at<1>(op, t, i, scale);
}

float bias_correction(float beta, std::int64_t step) {
  return static_cast<float>(1 / (1 - std::pow(double{beta}, static_cast<double>(step))));
}

// Whether a tensor begins where four of its elements can be read at once.
bool is_wide(const ConstTensorView& view) {
  return reinterpret_cast<std::uintptr_t>(view.data()) % (4 * size_of(view.dtype())) == 0;
}

// Those of `ops`, all in T where they store, in as many launches as they need.
template <class T>
void step_all(const Adam& adam, const AdamWStep* ops, std::size_t count, Stream& stream) {
  TensorList<AdamTensor<T>> list;
  static_assert(sizeof(adam) + sizeof(list) <= 4096, "what every driver takes as parameters");
  const auto launch_list = [&] {
    if (list.blocks() > 0) {
      launch(adamw_kernel<T>, list.blocks(), threads, 0, stream, "adamw_step", adam, list);
    }
    list.count = 0;
  };
  for (std::size_t i = 0; i < count; ++i) {
    const AdamWStep& op = ops[i];
    const bool wide = is_wide(op.weight) && is_wide(op.gradient) && is_wide(op.m) &&
                      is_wide(op.v) && (!op.stored || is_wide(op.stored));
    list.add({op.weight.data<float>(), op.stored ? op.stored.data<T>() : nullptr,
              op.gradient.data<float>(), op.m.data<float>(), op.v.data<float>(), op.weight.count(),
              op.weight_decay, wide},
             op.weight.count());
    if (list.count == list.most) launch_list();
  }
  launch_list();
}

}  // namespace

void run_all(const SumSquares* ops, std::size_t count, Stream& stream) {
  const OnDevice current(stream.device(), "sum_squares");
  Scratch scratch(stream);
  std::int64_t parts = 0;
  for (std::size_t i = 0; i < count; ++i) parts += divide_up(ops[i].x.count(), part);
  float* sums = scratch.take({parts}, DType::f32).data<float>();
  float* to = sums;
  TensorList<Summed> list;
  for (std::size_t i = 0; i < count; ++i) {
    list.add({ops[i].x.data<float>(), ops[i].x.count()}, ops[i].x.count());
    if (list.count < list.most && i + 1 < count) continue;
    if (list.blocks() > 0) {
      launch(sum_squares_kernel, list.blocks(), threads, 0, stream, "sum_squares", list, to);
    }
    to += list.blocks();
    list.count = 0;
  }
  while (true) {
    const std::int64_t fewer = std::max<std::int64_t>(divide_up(parts, part), 1);
    to = fewer > 1 ? scratch.take({fewer}, DType::f32).data<float>() : nullptr;
    launch(sum_part_kernel, static_cast<unsigned>(fewer), threads, 0, stream, "sum_squares",
           Summed{sums, parts}, to, ops->y.data<float>(), ops->accumulate);
    if (fewer == 1) return;
    sums = to;
    parts = fewer;
  }
}

void run_all(const AdamWStep* ops, std::size_t count, Stream& stream) {
  const OnDevice current(stream.device(), "adamw_step");
  Adam adam{};
  adam.squares = ops->squares ? ops->squares.data<float>() : nullptr;
  adam.max_norm = ops->max_norm;
  adam.loss_scale = ops->loss_scale;
  adam.learning_rate = ops->learning_rate;
  adam.beta1 = ops->beta1;
  adam.beta2 = ops->beta2;
  adam.epsilon = ops->epsilon;
  adam.m_correction = bias_correction(ops->beta1, ops->step);
  adam.v_correction = bias_correction(ops->beta2, ops->step);
  // A launch has one storage type; where nothing is stored, any will do.
  for (std::size_t first = 0, last; first < count; first = last) {
    std::optional<DType> dtype;
    for (last = first; last < count; ++last) {
      if (!ops[last].stored) continue;
      if (dtype && *dtype != ops[last].stored.dtype()) break;
      dtype = ops[last].stored.dtype();
    }
    detail::visit(dtype.value_or(DType::f32), [&](auto type) {
      step_all<typename decltype(type)::type>(adam, ops + first, last - first, stream);
    });
  }
}

void run(const SumSquares& op, Stream& stream) { run_all(&op, 1, stream); }
void run(const AdamWStep& op, Stream& stream) { run_all(&op, 1, stream); }

}  // namespace mamba::cuda
