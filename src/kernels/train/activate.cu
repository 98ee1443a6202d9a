// Activate and ActivateGrad: element by element.
#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/math.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

constexpr int block_threads = 256;

template <class T>
struct Elements {
  const T* x;
  const T* dy;  // nullptr: the function itself
  T* out;
  RowPitches x_rows, dy_rows, out_rows;
  std::int64_t rows, channels;
  bool relu;

  __device__ __forceinline__ float apply(float value) const {
    if (relu) return value < 0 ? 0 : value;  // NaN stays
    return silu<T>(value);
  }
  __device__ __forceinline__ float apply_grad(float value, float gradient) const {
    if (relu) return value > 0 ? gradient : 0;
    return silu_grad<T>(value, gradient);
  }
};

template <int V, class T>
__global__ void __launch_bounds__(block_threads) activate_kernel(const Elements<T> op) {
  const std::int64_t per_row = op.channels / V;
  const std::int64_t count = op.rows * per_row;
  const std::int64_t stride = std::int64_t{gridDim.x} * block_threads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * block_threads + threadIdx.x; i < count;
       i += stride) {
    const std::int64_t row = i / per_row;
    const std::int64_t c = i % per_row * V;
    float values[V];
    load_floats<V>(op.x + op.x_rows.offset(row) + c, values);
    if (op.dy == nullptr) {
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = op.apply(values[v]);
    } else {
      float gradient[V];
      load_floats<V>(op.dy + op.dy_rows.offset(row) + c, gradient);
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = op.apply_grad(values[v], gradient[v]);
    }
    store_floats<V>(op.out + op.out_rows.offset(row) + c, values);
  }
}

template <int V, class T>
void launch_elements(const Elements<T>& op, const char* where, Stream& stream) {
  constexpr std::int64_t most_blocks = 1 << 16;
  const std::int64_t blocks = divide_up(op.rows * (op.channels / V), block_threads);
  launch(activate_kernel<V, T>, static_cast<unsigned>(std::min(blocks, most_blocks)), block_threads,
         0, stream, where, op);
}

// dy absent: the function itself.
void run_elements(const ConstTensorView& x, const ConstTensorView& dy, const TensorView& out,
                  Activation function, const char* where, Stream& stream) {
  const OnDevice current(stream.device(), where);
  detail::visit(x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    constexpr int V = 16 / static_cast<int>(size);
    const std::int64_t channels = x.shape().back();
    const Elements<T> op{x.data<T>(),
                         dy ? dy.data<T>() : nullptr,
                         out.data<T>(),
                         RowPitches(x),
                         RowPitches(dy),
                         RowPitches(out),
                         x.count() / channels,
                         channels,
                         function == Activation::relu};
    const bool vectors = channels % V == 0 && op.x_rows.aligned(op.x, size, 16) &&
                         op.dy_rows.aligned(op.dy, size, 16) &&
                         op.out_rows.aligned(op.out, size, 16);
    vectors ? launch_elements<V>(op, where, stream) : launch_elements<1>(op, where, stream);
  });
}

}  // namespace

void run(const Activate& op, Stream& stream) {
  run_elements(op.x, {}, op.y, op.function, "activate", stream);
}

void run(const ActivateGrad& op, Stream& stream) {
  run_elements(op.x, op.dy, op.dx, op.function, "activate_grad", stream);
}

}  // namespace mamba::cuda
