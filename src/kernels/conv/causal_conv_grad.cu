// CausalConvGrad: operands to pointers, and which kernel runs.
#include <algorithm>

#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "kernels/conv/causal_conv_grad_any.cuh"
#include "kernels/conv/causal_conv_grad_tile.cuh"

namespace mamba::cuda {

namespace conv {

namespace {

constexpr const char* where = "causal_conv_grad";

template <class T>
GradOperands<T> operands(const CausalConvGrad& op, Stream& stream) {
  GradOperands<T> o{};
  o.of.x = op.x.data<T>();
  o.of.x_row = op.x.row_pitch();
  o.of.x_step = op.x.step_pitch();
  o.of.weight = op.weight.data<float>();
  o.of.weight_row = op.weight.row_pitch();
  o.of.bias = op.bias ? op.bias.data<float>() : nullptr;
  o.of.initial = op.initial_state ? op.initial_state.data<T>() : nullptr;
  o.of.state_rows = op.x.dim(0);
  o.of.reset = op.reset ? op.reset.data<std::int32_t>() : nullptr;
  o.of.reset_row = op.reset ? op.reset.row_pitch() : 0;
  o.of.batch = op.x.dim(0);
  o.of.time = op.x.dim(1);
  o.of.channels = op.x.dim(2);
  o.of.past = static_cast<int>(op.weight.dim(1)) - 1;
  o.of.silu = op.silu;
  o.of.wide_weights = is_aligned(o.of.weight, o.of.weight_row * 4, 16);
  o.of.bad_row = StreamAccess::flag(stream, BadValue::state_row);
  o.dy = op.dy.data<T>();
  o.dy_row = op.dy.row_pitch();
  o.dy_step = op.dy.step_pitch();
  o.dfinal = op.dfinal_state ? op.dfinal_state.data<T>() : nullptr;
  o.dinitial = op.dinitial_state ? op.dinitial_state.data<T>() : nullptr;
  o.dx = op.dx.data<T>();
  o.dx_row = op.dx.row_pitch();
  o.dx_step = op.dx.step_pitch();
  return o;
}

template <class T>
bool takes_vectors(const GradOperands<T>& o, int V) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(T));
  const auto aligned = [&](const void* base, std::int64_t row, std::int64_t step) {
    return is_aligned(base, row * size, V * size) && is_aligned(base, step * size, V * size);
  };
  return o.of.channels % V == 0 && aligned(o.of.x, o.of.x_row, o.of.x_step) &&
         aligned(o.dy, o.dy_row, o.dy_step) && aligned(o.dx, o.dx_row, o.dx_step) &&
         aligned(o.of.initial, 0, 0);
}

// Steps per tile: each tile computes kPast steps twice, but the chip should be full. The tiles of
// one batch row are whole blocks of grad_warps tiles, or nearly.
std::int64_t grad_tile_steps(std::int64_t threads_per_tile, std::int64_t time) {
  constexpr std::int64_t enough_threads = 256 * 1024;
  const std::int64_t wished = threads_per_tile * divide_up(time, 64) >= enough_threads ? 64 : 24;
  const std::int64_t block_steps = wished * grad_warps;
  const std::int64_t blocks = std::max<std::int64_t>((time + block_steps / 2) / block_steps, 1);
  const std::int64_t steps = divide_up(time, blocks * grad_warps);
  return std::max(divide_up(steps, depth) * depth, std::int64_t{2 * depth});
}

template <int kWidth, int V, class T>
void run_tiles(const GradOperands<T>& o, const PutFilter& put, Stream& stream) {
  const Operands<T>& of = o.of;
  GradGrid grid;
  grid.tile = grad_tile_steps(of.batch * divide_up(of.channels, V), of.time);
  grid.tiles = std::max<std::int64_t>(divide_up(of.time, grid.tile), 1);
  grid.channel_blocks = static_cast<unsigned>(divide_up(of.channels, 32 * V));
  grid.tile_blocks = static_cast<unsigned>(divide_up(grid.tiles, grad_warps));
  const std::int64_t parts = of.batch * grid.tile_blocks;
  const auto blocks = static_cast<unsigned>(parts * grid.channel_blocks);
  const bool summed = put.dweight != nullptr || put.dbias != nullptr;
  const std::int64_t sums = (kWidth + 1) * of.channels;
  Scratch scratch(stream);
  float* partials =
      summed ? scratch.take(Shape{parts, sums}, DType::f32).template data<float>() : nullptr;
  if (of.reset != nullptr || !of.silu) {
    launch(conv_grad_tile_kernel<kWidth, V, true, T>, blocks, tile_threads, 0, stream, where, o,
           grid, partials);
  } else {
    launch(conv_grad_tile_kernel<kWidth, V, false, T>, blocks, tile_threads, 0, stream, where, o,
           grid, partials);
  }
  if (summed) sum_parts(partials, parts, sums, put, stream, where);
}

// Vectors of 8 bytes: as many as there are registers for.
template <int kWidth, class T>
void run_width(const GradOperands<T>& o, const PutFilter& put, Stream& stream) {
  constexpr int V = 8 / static_cast<int>(sizeof(T));
  takes_vectors(o, V) ? run_tiles<kWidth, V>(o, put, stream) : run_tiles<kWidth, 1>(o, put, stream);
}

template <class T>
void run_any(const GradOperands<T>& o, const PutFilter& put, Stream& stream) {
  const Operands<T>& of = o.of;
  const auto blocks = [](std::int64_t items) {
    return static_cast<unsigned>(
        std::clamp<std::int64_t>(divide_up(items, any_threads), 1, 1 << 16));
  };
  Scratch scratch(stream);
  float* g = scratch.take(Shape{of.batch, of.time, of.channels}, DType::f32).template data<float>();
  const std::int64_t steps = of.batch * of.time;
  launch(conv_grad_taps_kernel<T>, blocks(steps * of.channels), any_threads, 0, stream, where, o,
         g);
  const std::int64_t inputs = of.batch * (of.time + of.past) * of.channels;
  launch(conv_grad_inputs_kernel<T>, blocks(inputs), any_threads, 0, stream, where, o, g);
  if (put.dweight == nullptr && put.dbias == nullptr) return;
  const std::int64_t parts = std::max<std::int64_t>(divide_up(steps, part_steps), 1);
  const std::int64_t sums = (of.past + 2) * of.channels;
  float* partials = scratch.take(Shape{parts, sums}, DType::f32).template data<float>();
  launch(conv_grad_weights_kernel<T>, blocks(parts * sums), any_threads, 0, stream, where, o, g,
         partials, parts);
  sum_parts(partials, parts, sums, put, stream, where);
}

template <class T>
void run_typed(const CausalConvGrad& op, Stream& stream) {
  GradOperands<T> o = operands<T>(op, stream);
  Scratch scratch(stream);
  if (o.dfinal != nullptr && o.dfinal == o.dinitial) {
    // One is written by the first tile, the other read by the last.
    const TensorView copied = scratch.take(op.dfinal_state.shape(), op.dfinal_state.dtype());
    if (copied.count() > 0) cuda::copy(op.dfinal_state, copied, stream);
    o.dfinal = static_cast<const T*>(copied.data());
  }
  PutFilter put{};
  put.dweight = op.dweight ? op.dweight.data<float>() : nullptr;
  put.dbias = op.dbias ? op.dbias.data<float>() : nullptr;
  put.channels = o.of.channels;
  put.width = o.of.past + 1;
  put.accumulate = op.accumulate;
  switch (put.width) {
    case 2:
      return run_width<2>(o, put, stream);
    case 3:
      return run_width<3>(o, put, stream);
    case 4:
      return run_width<4>(o, put, stream);
    default:
      return run_any(o, put, stream);
  }
}

// No batch rows: sums of nothing.
void clear_sums(const CausalConvGrad& op, Stream& stream) {
  if (op.accumulate) return;
  for (const TensorView& view : {op.dweight, op.dbias}) {
    if (view && view.count() > 0) cuda::zero(view, stream);
  }
}

}  // namespace

}  // namespace conv

void run(const CausalConvGrad& op, Stream& stream) {
  if (op.x.dim(2) == 0) return;
  const OnDevice current(stream.device(), conv::where);
  if (op.x.dim(0) == 0) return conv::clear_sums(op, stream);
  detail::visit(op.x.dtype(),
                [&](auto type) { conv::run_typed<typename decltype(type)::type>(op, stream); });
}

}  // namespace mamba::cuda
