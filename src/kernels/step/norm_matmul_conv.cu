// AddRmsNorm, Matmul and CausalConv of one step of one row in one kernel: between dependent kernels
// lies more than a microsecond, which is more than the norm and the convolution have to do. Every
// block norms the row for itself while its first weights come; a lane that ends with a channel's
// product takes the channel's convolution one step on. Every sum in the order of the kernels it
// stands for.
#include "kernels/conv/causal_conv_tile.cuh"
#include "kernels/matmul/gemv_rows.cuh"
#include "kernels/norm/add_rms_norm.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "add_rms_norm, matmul and causal_conv";
constexpr int norm_most = 2;  // vectors of a row that a thread has
constexpr int conv_width = 4;

// One row by a whole block of at least `lanes` threads: the bits of add_rms_norm_kernel.
template <class T>
struct RowNorm {
  static constexpr int V = norm_vector;
  const Norm<T>& norm;
  int channels;
  float sum[norm_most][V], weight[norm_most][V];

  __device__ __forceinline__ explicit RowNorm(const Norm<T>& operands)
      : norm(operands), channels(static_cast<int>(operands.channels)) {}

  // f(j, i) for vector j of this thread, which begins at channel i.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
#pragma unroll
    for (int j = 0; j < norm_most; ++j) {
      const auto i = static_cast<int>(threadIdx.x + j * blockDim.x) * V;
      if (i < channels) f(j, i);
    }
  }
  __device__ __forceinline__ void prefetch() const {
    each([&](int, int i) {
      if (norm.weight != nullptr) prefetch_line(norm.weight + i);
    });
  }
  __device__ __forceinline__ void load() {
    each([&](int j, int i) {
      add<V>(norm.x, norm.residual, i, sum[j]);
#pragma unroll
      for (float& one : weight[j]) one = 1;
      if (norm.weight != nullptr) load_floats<V>(norm.weight + i, weight[j]);
    });
  }
  // y to shared memory; one block also leaves what the norm leaves. `sums`: shared memory.
  __device__ __forceinline__ void finish(float* sums, T* y) const {
    __shared__ float warps[row_block_largest / 32];
    each([&](int j, int i) { store_floats<V>(sums + i, sum[j]); });
    __syncthreads();
    const auto thread = static_cast<int>(threadIdx.x);
    float squares = 0;
    for (int i = thread * V; thread < norm.lanes && i < channels; i += norm.lanes * V) {
      float part[V];
      load_floats<V>(sums + i, part);
#pragma unroll
      for (int k = 0; k < V; ++k) squares = fmaf(part[k], part[k], squares);
    }
    for (int apart = min(norm.lanes, 32) / 2; apart > 0; apart /= 2) {
      squares += __shfl_xor_sync(all_lanes, squares, apart);
    }
    if (thread < norm.lanes && thread % 32 == 0) warps[thread / 32] = squares;
    __syncthreads();
    squares = 0;
    for (int w = 0; w < max(norm.lanes / 32, 1); ++w) squares += warps[w];
    const float factor = norm_factor(squares, channels, norm.epsilon);
    each([&](int j, int i) {
      float out[V];
#pragma unroll
      for (int k = 0; k < V; ++k) out[k] = sum[j][k] * factor * weight[j][k];
      store_floats<V>(y + i, out);
      if (blockIdx.x != 0) return;
      store_floats<V>(norm.y + i, out);
      if (norm.sum != nullptr) store_floats<V>(norm.sum + i, sum[j]);
    });
    __syncthreads();
  }
};

template <class T>
__device__ __forceinline__ void prefetch(const conv::Operands<T>& op, std::int64_t channel) {
  prefetch_line(op.weight + channel * op.weight_row);
  if (op.bias != nullptr) prefetch_line(op.bias + channel);
  if (op.initial == nullptr) return;
  const std::int64_t row = likely_row(op.read, 0, op.state_rows);
  if (row >= 0) prefetch_line(op.initial + (row * op.channels + channel) * op.past);
}

template <class Load, int Ahead>
__global__ void __launch_bounds__(gemv_rows_warps * 32, 2)
    norm_matmul_conv_kernel(const __grid_constant__ Norm<typename Load::T> norm,
                            const __grid_constant__ MatmulOperands<Load> product,
                            const __grid_constant__ conv::Operands<typename Load::T> conv,
                            const RowsCut cut) {
  using T = typename Load::T;
  using Memory = RowsMemory<Load, Ahead>;
  WeightRows<Load, Ahead> weights(product, cut.rows);
  T* x = Memory::x();
  auto* sums = reinterpret_cast<float*>(x + Memory::padded(weights.in));
  const std::int64_t column = weights.first + weights.lane;
  const bool ends = weights.lane < weights.count;
  const bool convolves = ends && column < conv.channels;
  let_next_begin();
  RowNorm<T> row_norm(norm);
  row_norm.prefetch();
  if (convolves) prefetch(conv, column);
  Memory::pad(weights.in);
  wait_for_weights(cut.constant);
  weights.begin();
  wait_for_previous();
  row_norm.load();
  conv::Track<conv_width, 1, true, T> track(conv, 0, column, 0);
  const StateRow<> state = conv::state_row(conv, 0);
  if (convolves) {
    track.filter.load(conv, column);
    track.load_initial(state, column);
  }
  row_norm.finish(sums, x);
  const float sum = weights.multiply(x);
  if (!ends) return;
  const float value = product.with_bias(column, sum);
  const T rounded = from_float<T>(value);
  static_cast<T*>(product.y)[column] = rounded;
  if (!convolves) return;
  const float input[1] = {to_float(rounded)};  // to T and back is exact
  track.only_step(state, column, Packed<T, 1>::pack(input));
}

// What the three operations come to, and whether a block can do its part of all.
template <class Load>
struct Step {
  Norm<typename Load::T> norm;
  MatmulOperands<Load> product;
  RowsCut cut;
  bool fits;

  Step(const AddRmsNorm& norm_op, const Matmul& product_op, bool constant)
      : norm(norm_op), product(product_op), cut(product, constant, product_op.x.device(), where) {
    const std::int64_t vectors = norm.channels / norm_vector;
    const int each = norm_vectors_per_thread(vectors);
    if (each > 0) norm.lanes = RowBlocks(norm.channels, norm_vector, each).lanes;
    fits = norm.vectors && vectors <= std::int64_t{norm_most} * cut.threads() &&
           norm.lanes <= cut.threads();
  }
  template <int Ahead>
  std::size_t shared() const {
    return RowsMemory<Load, Ahead>::bytes(product.in, cut.warps) +
           static_cast<std::size_t>(norm.channels) * sizeof(float);
  }
};

bool same(const ConstTensorView& a, const ConstTensorView& b) {
  return a && b && a.data() == b.data();
}

}  // namespace

bool in_one_pass(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv) {
  const bool chained = same(norm.y, product.x) && norm.y.count() == product.x.count() &&
                       same(product.y, conv.x) && conv.x.dim(2) <= product.y.shape().back();
  const DType dtype = product.x.dtype();
  const bool one_dtype =
      norm.y.dtype() == dtype && product.y.dtype() == dtype && conv.x.dtype() == dtype;
  // All blocks read what the norm reads while one of them writes.
  const bool in_place =
      same(norm.y, norm.x) || (norm.sum ? same(norm.sum, norm.residual) : norm.x && norm.residual);
  const bool one_step = conv.x.dim(0) == 1 && conv.x.dim(1) == 1;
  if (!chained || !one_dtype || in_place || !one_step || conv.weight.dim(1) != conv_width ||
      product.accumulate || !streams_rows(product)) {
    return false;
  }
  return visit_load(product, [&](auto type) {
    return Step<typename decltype(type)::type>(norm, product, false).fits;
  });
}

void run(const AddRmsNorm& norm, const Matmul& product, const CausalConv& conv, Stream& stream) {
  const OnDevice current(stream.device(), where);
  visit_load(product, [&](auto type) {
    using Load = typename decltype(type)::type;
    const Step<Load> step(norm, product, StreamAccess::constant_weights(stream));
    visit_ahead(step.cut, [&](auto ahead) {
      launch_chained(norm_matmul_conv_kernel<Load, ahead()>, step.cut.blocks, step.cut.threads(),
                     step.template shared<ahead()>(), stream, where, step.norm, step.product,
                     conv::operands<typename Load::T>(conv, stream), step.cut);
    });
  });
}

}  // namespace mamba::cuda
