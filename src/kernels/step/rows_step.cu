// One token of some tens of rows through all layers of a stack, four kernels a layer:
//
//   in_proj, with the norm after its sums, the convolution and its state
//   x_proj
//   dt_proj, the scan and the gate
//   out_proj, with the residual, and what the next layer's norm needs of it
//
// Every kernel needs all of what the one before it made, and between two dependent kernels lies
// more than a microsecond, so few of them count, and what each can do before its turn: its first
// weights are on their way, and its states. That states may be read early is due to in_proj, which
// lets the next kernel begin only once its own turn has come: where the scan has begun, x_proj has,
// and so all kernels before in_proj have ended, the layer's last scan among them.
#include "kernels/matmul/matmul.hpp"
#include "kernels/step/rows_scan.cuh"
#include "kernels/step/stack_step.hpp"

namespace mamba::cuda {

namespace rows {

namespace {

constexpr const char* where = "Stack::forward";
using Load = DenseLoad<T>;

// Beyond these sizes cuBLASLt's products are faster than a chain of fewer kernels. ms a step, and
// layer by layer: 1.4b 32 rows 1.73 and 2.16, 64 rows 2.44 and 2.39; 2.8b 16 rows 2.93 and 3.15, 32
// rows 3.62 and 3.52, 64 rows 4.43 and 4.03.
constexpr int few_rows = 16;
constexpr int most_inputs = 65536;  // rows * d_model

// The first layer's residual is x.
constexpr int begin_threads = 128, begin_columns = 8;
__global__ void __launch_bounds__(begin_threads) begin_kernel(const __grid_constant__ Operands op) {
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

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    in_kernel(const __grid_constant__ MatmulOperands<Load> product,
              const __grid_constant__ Operands op, const SkinnyCut cut) {
  __shared__ float factors[Tile::rows];
  skinny_product<Load, Tile>(product, cut, ConvEnd<Tile::rows, Tile::threads>{op, factors});
}
template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    out_kernel(const __grid_constant__ MatmulOperands<Load> product,
               const __grid_constant__ Operands op, const SkinnyCut cut) {
  skinny_product<Load, Tile>(product, cut, ResidualEnd<Tile::rows>{op});
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
Matmul product_of(const void* x, const void* weight, void* y, int rows, int in, int out,
                  Device device) {
  Matmul op;
  op.x = ConstTensorView(x, {rows, in}, Mamba1Step::dtype, device);
  op.weight = ConstTensorView(weight, {out, in}, Mamba1Step::dtype, device);
  op.y = TensorView(y, {rows, out}, Mamba1Step::dtype, device);
  return op;
}

template <class Kernels>
void launch_product(const Matmul& matmul, const Operands& op, Stream& stream,
                    const Kernels& kernels) {
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

}  // namespace

bool takes(const Mamba1Step& s, const Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  // Bytes of shared memory of the products' blocks.
  const auto shared = [](auto type) {
    using Tile = typename decltype(type)::type;
    return std::int64_t{Tile::shared(Tile::ahead)} * std::int64_t{sizeof(uint4)};
  };
  const bool many = s.rows > few_rows && s.rows * s.d_model > most_inputs;
  if (s.rows > Mamba1Step::most_rows || many || s.d_model % 32 != 0 ||
      s.d_inner % scan_channels != 0 || s.dt_rank % dt_depth != 0 ||
      s.dt_rank > stack::most_dt_rank ||
      visit_tile(s.rows, shared) + 1024 > shared_memory(device, where)) {
    return false;
  }
  return capability_of(scan_kernel, device, where) >= sm_90;
}

void run(const Mamba1Step& step, Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  const int rows = step.rows, d_model = step.d_model, d_inner = step.d_inner;
  const int width = step.dt_rank + 2 * stack::d_state;
  Scratch scratch(stream);
  const auto take = [&](int channels) {
    return static_cast<T*>(scratch.take({rows, channels}, Mamba1Step::dtype).data());
  };
  Operands op{};
  op.step = step;
  op.normed = take(d_model);
  op.squares = scratch.take({rows, d_model / square_columns}, DType::f32).data<float>();
  op.u = take(d_inner);
  op.z = take(d_inner);
  op.y = take(d_inner);
  op.selection = take(width);
  op.bad_row = StreamAccess::flag(stream, BadValue::state_row);
  op.next_norm = step.layers[0].norm;
  launch_chained(begin_kernel, static_cast<unsigned>(rows), begin_threads, 0, stream, where, op);

  const dim3 scan_grid(static_cast<unsigned>(d_inner / scan_channels),
                       static_cast<unsigned>(divide_up(rows, scan_rows)));
  for (int l = 0; l < step.layer_count; ++l) {
    op.layer = step.layers[l];
    op.next_norm = l + 1 < step.layer_count ? step.layers[l + 1].norm : nullptr;
    const auto product = [&](const void* x, const void* weight, void* y, int from, int to) {
      return product_of(x, weight, y, rows, from, to, device);
    };
    launch_product(product(op.normed, op.layer.in_proj, op.u, d_model, 2 * d_inner), op, stream,
                   [](auto type) { return in_kernel<typename decltype(type)::type>; });
    cuda::run(product(op.u, op.layer.x_proj, op.selection, d_inner, width), stream);
    launch_chained(scan_kernel, scan_grid, scan_threads, 0, stream, where, op);
    launch_product(product(op.y, op.layer.out_proj, op.y, d_inner, d_model), op, stream,
                   [](auto type) { return out_kernel<typename decltype(type)::type>; });
  }
}

}  // namespace rows

bool takes(const Mamba1Step& step, const Stream& stream) {
  return step.rows <= stack::most_rows ? stack::takes(step, stream) : rows::takes(step, stream);
}
void run(const Mamba1Step& step, Stream& stream) {
  step.rows <= stack::most_rows ? stack::run(step, stream) : rows::run(step, stream);
}

}  // namespace mamba::cuda
