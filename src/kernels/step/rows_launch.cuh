// Launches of a step of some tens of rows, whatever the architecture: the first kernel, the two
// large products, and where they can run.
#pragma once

#include "kernels/matmul/matmul.hpp"
#include "kernels/step/rows_step.cuh"

namespace mamba::cuda::rows {

using Load = DenseLoad<T>;
constexpr const char* where = "Stack::forward";

// The first layer's residual is x.
constexpr int begin_threads = 128, begin_columns = 8;
template <class Sizes>
__global__ void __launch_bounds__(begin_threads)
    begin_kernel(const __grid_constant__ StepOperands<Sizes> op) {
  let_next_begin();
  wait_for_previous();
  const auto row = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0 && state_row(op.step, row).bad && op.bad_row != nullptr) *op.bad_row = 1;
  const T* x = static_cast<const T*>(op.step.x) + row * op.step.x_pitch;
  for (int first = 0; first < op.step.d_model; first += begin_threads * begin_columns) {
    const int column = first + static_cast<int>(threadIdx.x) * begin_columns;
    const bool there = column < op.step.d_model;
    float residual[begin_columns] = {}, weight[begin_columns] = {};
    if (there) {
#pragma unroll
      for (int i = 0; i < begin_columns; ++i) residual[i] = to_float(x[column + i]);
      load_columns(op.next_norm + column, weight);
    }
    op.leave(there, row, column, residual, weight);
  }
}

template <class Op, class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    in_kernel(const __grid_constant__ MatmulOperands<Load> product, const __grid_constant__ Op op,
              const SkinnyCut cut) {
  __shared__ float factors[Tile::rows];
  skinny_product<Load, Tile>(product, cut, ConvEnd<Op, Tile::rows, Tile::threads>{op, factors});
}

// 32 weight rows and all rows of x. A tile of 64 weight rows reads x half as often and was slower
// (370m, 64 rows: 1.58 ms a step, with 32 weight rows 1.27).
template <int Rows>
using TileOf = SkinnyTile<32, Rows, (Rows < 32 ? 8 : 4), (Rows < 32 ? 1 : 2), 4>;

// f(Type<Tile>{}) for the tile that has all rows.
template <class F>
auto visit_tile(int rows, const F& f) {
  if (rows <= 8) return f(detail::Type<TileOf<8>>{});
  if (rows <= 16) return f(detail::Type<TileOf<16>>{});
  if (rows <= 32) return f(detail::Type<TileOf<32>>{});
  return f(detail::Type<TileOf<64>>{});
}

// Splits of a product's depth: for a block or, of many rows, two on each multiprocessor, as long as
// each has least_depth of it. ms a step of 130m, 64 rows: in_proj in 1 split 0.576, in 2 0.565,
// in 4 0.652; out_proj in 2 0.603, in 4 0.560, in 8 0.574; of 370m out_proj in 4 1.27, in 8 1.44.
constexpr int least_depth = 384;
template <class Tile>
int splits_of(int in, int out, Device device) {
  const std::int64_t tiles = divide_up(out, Tile::columns);
  const std::int64_t most = multiprocessors(device, where) * std::int64_t{Tile::rows < 32 ? 1 : 2};
  int splits = 1;
  while (splits < skinny_most_splits && tiles * splits * 2 <= most &&
         in / (splits * 2) >= least_depth) {
    splits *= 2;
  }
  return splits;
}

// y = x weight^T, as an operand.
inline Matmul product_of(const void* x, const void* weight, void* y, int rows, int in, int out,
                         Device device) {
  Matmul op;
  op.x = ConstTensorView(x, {rows, in}, StackStepSizes::dtype, device);
  op.weight = ConstTensorView(weight, {out, in}, StackStepSizes::dtype, device);
  op.y = TensorView(y, {rows, out}, StackStepSizes::dtype, device);
  return op;
}

template <class Op, class Kernels>
void launch_product(const Matmul& matmul, const Op& op, Stream& stream, const Kernels& kernels) {
  const MatmulOperands<Load> product(matmul);
  visit_tile(op.step.rows, [&](auto type) {
    using Tile = typename decltype(type)::type;
    const int splits = splits_of<Tile>(static_cast<int>(product.in), static_cast<int>(product.out),
                                       stream.device());
    const SkinnyLaunch<Load, Tile> run(product, splits, StreamAccess::constant_weights(stream));
    launch_clusters(kernels(type), splits, run.grid, Tile::threads, run.shared, stream, where,
                    product, op, run.cut);
  });
}

// Whether the products' blocks fit the device.
inline bool products_fit(const StackStepSizes& s, Device device) {
  const auto shared = [](auto type) {
    using Tile = typename decltype(type)::type;
    return std::int64_t{Tile::shared(Tile::ahead)} * std::int64_t{sizeof(uint4)};
  };
  return visit_tile(s.rows, shared) + 1024 <= shared_memory(device, where);
}

// What a step has of its own beside what its architecture needs, and its first kernel.
template <class Sizes>
void begin(StepOperands<Sizes>& op, const float* norm, Scratch& scratch, Stream& stream) {
  const int rows = op.step.rows, d_model = op.step.d_model;
  op.normed = static_cast<T*>(scratch.take({rows, d_model}, StackStepSizes::dtype).data());
  op.squares = scratch.take({rows, d_model / square_columns}, DType::f32).template data<float>();
  op.bad_row = StreamAccess::flag(stream, BadValue::state_row);
  op.next_norm = norm;
  launch_chained(begin_kernel<Sizes>, static_cast<unsigned>(rows), begin_threads, 0, stream, where,
                 op);
}

// Layer number `l` of `step` from here on.
template <class Op, class Step>
void take_layer(Op& op, const Step& step, int l) {
  op.layer = step.layers[l];
  op.conv.weight = op.layer.conv_weight;
  op.conv.bias = op.layer.conv_bias;
  op.conv.state = static_cast<T*>(op.layer.conv);
  op.next_norm = l + 1 < step.layer_count ? step.layers[l + 1].norm : nullptr;
}

}  // namespace mamba::cuda::rows
