// CausalConv: operands to pointers, and which kernel runs.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/conv/causal_conv_any.cuh"
#include "kernels/conv/causal_conv_tile.cuh"
#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/rows.cuh"

namespace mamba::cuda {

namespace conv {

namespace {

// Whether everything that is read or written by steps may be in vectors of V elements.
template <class T>
bool takes_vectors(const Operands<T>& o, int V) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(T));
  const auto aligned = [&](const void* base, std::int64_t row, std::int64_t step) {
    return is_aligned(base, row * size, V * size) && is_aligned(base, step * size, V * size);
  };
  return o.channels % V == 0 && aligned(o.x, o.x_row, o.x_step) &&
         aligned(o.y, o.y_row, o.y_step) && aligned(o.states, o.states_row, o.states_step) &&
         aligned(o.initial, 0, 0) && aligned(o.final_state, 0, 0);
}

// Steps per tile. Short tiles fill the chip, but each reads kPast inputs and its weights again, and
// each should go around the ring of requests a few times: even where threads are too few for the
// chip, 24 steps are no slower than 12 or 18 ((1, 2048, 5120): 18.8 us, 19.4, 18.6).
std::int64_t tile_steps(std::int64_t threads_per_tile, std::int64_t time) {
  constexpr std::int64_t enough_threads = 256 * 1024;
  return threads_per_tile * divide_up(time, 18) >= enough_threads ? 18 : 24;
}

// Calls launch_rows(grid, blocks) for as many batch rows at a time as 2^30 threads can take.
template <class T, class F>
void for_grids(const Operands<T>& o, int V, std::int64_t tile, int block_threads,
               const F& launch_rows) {
  Grid grid;
  grid.groups = static_cast<unsigned>(o.channels / V);
  grid.tiles = static_cast<unsigned>(std::max<std::int64_t>(divide_up(o.time, tile), 1));
  grid.tile = tile;
  const std::int64_t per_row = std::int64_t{grid.groups} * grid.tiles;
  const std::int64_t most = std::max<std::int64_t>((std::int64_t{1} << 30) / per_row, 1);
  for (grid.first_row = 0; grid.first_row < o.batch; grid.first_row += most) {
    const std::int64_t threads = std::min(most, o.batch - grid.first_row) * per_row;
    grid.threads = static_cast<unsigned>(threads);
    launch_rows(grid, static_cast<unsigned>(divide_up(threads, block_threads)));
  }
}

template <int kWidth, int V, class T>
void run_step(const Operands<T>& o, Stream& stream) {
  for_grids(o, V, 1, step_threads, [&](const Grid& grid, unsigned blocks) {
    launch_chained(conv_step_kernel<kWidth, V, T>, blocks, step_threads, 0, stream, "causal_conv",
                   o, grid);
  });
}

template <int kWidth, int V, class T>
void run_tiles(const Operands<T>& o, Stream& stream) {
  const std::int64_t tile = tile_steps(o.batch * (o.channels / V), o.time);
  for_grids(o, V, tile, tile_threads, [&](const Grid& grid, unsigned blocks) {
    if (o.reset != nullptr || o.states != nullptr) {
      launch(conv_tile_kernel<kWidth, V, true, T>, blocks, tile_threads, 0, stream, "causal_conv",
             o, grid);
    } else {
      launch(conv_tile_kernel<kWidth, V, false, T>, blocks, tile_threads, 0, stream, "causal_conv",
             o, grid);
    }
  });
}

// One step has little to read, and two channels to a thread are quickest: at 8 x 1536 a graph node
// takes 1.65 us with 2, 1.75 with 4 and 2.45 with 8; at 256 x 5120 8.2, 8.4 and 12.1 (bf16, H200).
template <int kWidth, class T>
void run_width(const Operands<T>& o, Stream& stream) {
  if (o.time == 1) {
    return takes_vectors(o, 2) ? run_step<kWidth, 2>(o, stream) : run_step<kWidth, 1>(o, stream);
  }
  takes_vectors(o, 4) ? run_tiles<kWidth, 4>(o, stream) : run_tiles<kWidth, 1>(o, stream);
}

template <class T>
void run_any(const Operands<T>& o, Stream& stream) {
  const auto blocks = [](std::int64_t items) {
    return static_cast<unsigned>(std::min<std::int64_t>(divide_up(items, any_threads), 1 << 16));
  };
  if (o.time > 0) {
    const unsigned outputs = blocks(o.batch * o.time * o.channels);
    launch(conv_any_kernel<T>, outputs, any_threads, 0, stream, "causal_conv", o);
  }
  if (o.final_state != nullptr && o.past > 0) {
    launch(conv_final_kernel<T>, blocks(o.batch * o.channels), any_threads, 0, stream,
           "causal_conv", o);
  }
}

}  // namespace

}  // namespace conv

void run(const CausalConv& op, Stream& stream) {
  if (op.x.dim(0) == 0 || op.x.dim(2) == 0) return;
  const OnDevice current(stream.device(), "causal_conv");
  detail::visit(op.x.dtype(), [&](auto type) {
    const auto operands = conv::operands<typename decltype(type)::type>(op, stream);
    switch (operands.past) {
      case 1:
        return conv::run_width<2>(operands, stream);
      case 2:
        return conv::run_width<3>(operands, stream);
      case 3:
        return conv::run_width<4>(operands, stream);
      default:
        return conv::run_any(operands, stream);
    }
  });
}

}  // namespace mamba::cuda
