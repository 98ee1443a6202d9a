// SumSquares and AdamWStep: what an optimiser does with every element.
#include <cmath>

#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/ptx.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

// ---- the sum of squares -------------------------------------------------------------------------

constexpr int sum_threads = 256;
constexpr int sum_vectors = 4;  // of 4 elements to a thread
constexpr std::int64_t sum_part = std::int64_t{sum_threads} * sum_vectors * 4;

// parts[b] = the sum of part b of x, squared or not: a sum of 16 elements in each thread, then a
// tree. Where one part is all, it goes to, or is added to, y.
__global__ void __launch_bounds__(sum_threads)
    sum_part_kernel(const float* x, std::int64_t count, bool squares, float* parts, float* y,
                    bool accumulate) {
  const std::int64_t first = blockIdx.x * sum_part + threadIdx.x;
  float sums[4] = {};
#pragma unroll
  for (int i = 0; i < sum_vectors; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const std::int64_t at = first + (i * 4 + k) * sum_threads;
      const float value = at < count ? x[at] : 0;
      sums[k] = squares ? fmaf(value, value, sums[k]) : sums[k] + value;
    }
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  __shared__ float warps[sum_threads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(all_lanes, sum, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int half = sum_threads / 64; half > 0; half /= 2) {
#pragma unroll
    for (int w = 0; w < half; ++w) warps[w] += warps[w + half];
  }
  if (gridDim.x > 1) {
    parts[blockIdx.x] = warps[0];
  } else {
    *y = accumulate ? *y + warps[0] : warps[0];
  }
}

// ---- the step -----------------------------------------------------------------------------------

template <class T>
struct Adam {
  float* weight;
  T* stored;  // may be nullptr
  const float* gradient;
  float *m, *v;
  const float* squares;  // may be nullptr
  std::int64_t count;
  float max_norm, loss_scale, learning_rate, beta1, beta2, epsilon, decay;
  float m_correction, v_correction;  // 1 / (1 - beta^step)

  __device__ __forceinline__ void step(std::int64_t i, float scale) const {
    const float g = scale * gradient[i];
    const float new_m = beta1 * m[i] + (1 - beta1) * g;
    const float new_v = beta2 * v[i] + (1 - beta2) * g * g;
    const float direction = new_m * m_correction / (sqrtf(new_v * v_correction) + epsilon);
    const float old = weight[i];
    const float changed = old - learning_rate * (direction + decay * old);
    m[i] = new_m;
    v[i] = new_v;
    weight[i] = changed;
    if (stored != nullptr) stored[i] = from_float<T>(changed);
  }
};

template <class T>
__global__ void __launch_bounds__(sum_threads, 4) adamw_kernel(const Adam<T> op) {
  float scale = 1;
  if (op.squares != nullptr) {
    const float squares = *op.squares;
    if (!isfinite(squares)) return;
    if (op.max_norm > 0) scale = fminf(1, op.max_norm * op.loss_scale / sqrtf(squares));
  }
  scale /= op.loss_scale;
  const std::int64_t stride = std::int64_t{gridDim.x} * sum_threads;
#pragma unroll 4
  for (std::int64_t i = std::int64_t{blockIdx.x} * sum_threads + threadIdx.x; i < op.count;
       i += stride) {
    op.step(i, scale);
  }
}

float bias_correction(float beta, std::int64_t step) {
  return static_cast<float>(1 / (1 - std::pow(double{beta}, static_cast<double>(step))));
}

}  // namespace

void run(const SumSquares& op, Stream& stream) {
  const OnDevice current(stream.device(), "sum_squares");
  Scratch scratch(stream);
  const float* from = op.x.data<float>();
  std::int64_t count = op.x.count();
  bool squares = true;
  while (true) {
    const std::int64_t parts = std::max<std::int64_t>(divide_up(count, sum_part), 1);
    float* to = parts > 1 ? scratch.take({parts}, DType::f32).data<float>() : nullptr;
    launch(sum_part_kernel, static_cast<unsigned>(parts), sum_threads, 0, stream, "sum_squares",
           from, count, squares, to, op.y.data<float>(), op.accumulate);
    if (parts == 1) return;
    from = to;
    count = parts;
    squares = false;
  }
}

void run(const AdamWStep& op, Stream& stream) {
  const OnDevice current(stream.device(), "adamw_step");
  detail::visit(op.stored ? op.stored.dtype() : DType::f32, [&](auto type) {
    using T = typename decltype(type)::type;
    Adam<T> adam{};
    adam.weight = op.weight.data<float>();
    adam.stored = op.stored ? op.stored.data<T>() : nullptr;
    adam.gradient = op.gradient.data<float>();
    adam.m = op.m.data<float>();
    adam.v = op.v.data<float>();
    adam.squares = op.squares ? op.squares.data<float>() : nullptr;
    adam.count = op.weight.count();
    adam.max_norm = op.max_norm;
    adam.loss_scale = op.loss_scale;
    adam.learning_rate = op.learning_rate;
    adam.beta1 = op.beta1;
    adam.beta2 = op.beta2;
    adam.epsilon = op.epsilon;
    adam.decay = op.weight_decay;
    adam.m_correction = bias_correction(op.beta1, op.step);
    adam.v_correction = bias_correction(op.beta2, op.step);
    constexpr std::int64_t most_blocks = 4096;
    const auto blocks =
        static_cast<unsigned>(std::min(divide_up(adam.count, 4 * sum_threads), most_blocks));
    launch(adamw_kernel<T>, blocks, sum_threads, 0, stream, "adamw_step", adam);
  });
}

}  // namespace mamba::cuda
