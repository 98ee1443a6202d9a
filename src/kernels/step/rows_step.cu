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
#include "kernels/step/rows_launch.cuh"
#include "kernels/step/rows_scan.cuh"
#include "kernels/step/stack_step.hpp"

namespace mamba::cuda {

namespace rows {

namespace {

// Beyond these sizes cuBLASLt's products are faster than a chain of fewer kernels. ms a step, and
// layer by layer: 1.4b 32 rows 1.73 and 2.16, 64 rows 2.44 and 2.39; 2.8b 16 rows 2.93 and 3.15, 32
// rows 3.62 and 3.52, 64 rows 4.43 and 4.03.
constexpr int few_rows = 16;
constexpr int most_inputs = 65536;  // rows * d_model

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 2)
    out_kernel(const __grid_constant__ MatmulOperands<Load> product,
               const __grid_constant__ Operands op, const SkinnyCut cut) {
  skinny_product<Load, Tile>(product, cut, ResidualEnd<Operands, Tile::rows>{op});
}

}  // namespace

bool takes(const Mamba1Step& s, const Stream& stream) {
  const Device device = stream.device();
  const OnDevice current(device, where);
  const bool many = s.rows > few_rows && s.rows * s.d_model > most_inputs;
  if (s.rows > Mamba1Step::most_rows || many || s.d_model % 32 != 0 ||
      s.d_inner % scan_channels != 0 || s.dt_rank % dt_depth != 0 ||
      s.dt_rank > stack::most_dt_rank || !products_fit(s, device)) {
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
  op.conv.y = take(d_inner);
  op.conv.channels = d_inner;
  op.z = take(d_inner);
  op.y = take(d_inner);
  op.selection = take(width);
  begin(op, step.layers[0].norm, scratch, stream);

  const dim3 scan_grid(static_cast<unsigned>(d_inner / scan_channels),
                       static_cast<unsigned>(divide_up(rows, scan_rows)));
  for (int l = 0; l < step.layer_count; ++l) {
    take_layer(op, step, l);
    const auto product = [&](const void* x, const void* weight, void* y, int from, int to) {
      return product_of(x, weight, y, rows, from, to, device);
    };
    launch_product(product(op.normed, op.layer.in_proj, op.z, d_model, 2 * d_inner), op, stream,
                   [](auto type) { return in_kernel<Operands, typename decltype(type)::type>; });
    cuda::run(product(op.conv.y, op.layer.x_proj, op.selection, d_inner, width), stream);
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
