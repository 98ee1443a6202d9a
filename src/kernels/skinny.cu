// The Matmul of a few tens of rows: how it is cut into blocks.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/matmul.hpp"
#include "kernels/rows.cuh"
#include "kernels/skinny.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "matmul";

// What a multiprocessor's time goes into, in bytes that it could read from L2 meanwhile (about 40
// KB a microsecond for each of 132). Estimates, not measurements: a cluster's barrier takes as long
// as 8 KB, its memory is reached half as fast, and weights, which come before the kernel's turn,
// are half hidden.
constexpr double barrier_bytes = 8192;
constexpr double exchange_cost = 2;
constexpr double weight_cost = 0.5;

// How a product is cut: tiles of `columns` weight rows and `rows` rows of x, each shared by
// `splits` blocks.
struct Tiling {
  int columns = 0, rows = 0, splits = 0;
  double cost = 0;

  Tiling() = default;
  Tiling(const Matmul& op, int columns_, int rows_, int splits_, int multiprocessors)
      : columns(columns_), rows(rows_), splits(splits_) {
    const std::int64_t out = op.weight.dim(0), in = op.weight.dim(1);
    const std::int64_t all_rows = detail::ChannelRows(op.x).count();
    const std::int64_t blocks = divide_up(out, columns) * divide_up(all_rows, rows) * splits;
    const auto depth = static_cast<double>(divide_up(in, splits));
    const auto width = static_cast<double>(columns);
    const auto height = static_cast<double>(std::min<std::int64_t>(rows, all_rows));
    cost = 2 * depth * (weight_cost * width + height);
    if (splits > 1) {
      cost += barrier_bytes + exchange_cost * 4 * width * height * (splits - 1) / splits;
    }
    cost *= static_cast<double>(divide_up(blocks, multiprocessors));
  }
};

// The cheapest for the multiprocessor that has most to do. `most_splits`: 1 where blocks cannot
// form clusters.
Tiling tiling(const Matmul& op, int multiprocessors, int most_splits) {
  Tiling best;
  for (const int columns : {32, 48, 64, 80}) {
    for (const int rows : {16, 32, 64}) {
      for (int splits = 1; splits <= most_splits; splits *= 2) {
        const Tiling one(op, columns, rows, splits, multiprocessors);
        if (best.columns == 0 || one.cost < best.cost) best = one;
      }
    }
  }
  return best;
}

template <class T, int Columns, int Rows>
void launch(const Matmul& op, int splits, Stream& stream) {
  using Tile = SkinnyTile<Columns, Rows>;
  const MatmulOperands<T> operands(op);
  SkinnyCut cut;
  cut.splits = splits;
  cut.depth = static_cast<int>(divide_up(divide_up(operands.in, splits), 32) * 32);
  cut.stages = static_cast<int>(divide_up(cut.depth, skinny_depth));
  const std::int64_t ring = std::min(cut.stages, Tile::ahead) * Tile::stage_bytes;
  const std::int64_t before = std::max(ring, Tile::sums_bytes);
  cut.exchange = static_cast<int>(before / 4);
  cut.constant = StreamAccess::constant_weights(stream);
  const dim3 grid(static_cast<unsigned>(divide_up(operands.out, Columns) * splits),
                  static_cast<unsigned>(divide_up(operands.rows, Rows)));
  const auto shared = static_cast<std::size_t>(before + (splits > 1 ? Tile::exchange_bytes : 0));
  launch_clusters(skinny_kernel<T, Columns, Rows>, splits, grid, Tile::threads, shared, stream,
                  where, operands, cut);
}

template <class T, int Columns>
void launch(const Matmul& op, const Tiling& tiling, Stream& stream) {
  switch (tiling.rows) {
    case 16:
      return launch<T, Columns, 16>(op, tiling.splits, stream);
    case 32:
      return launch<T, Columns, 32>(op, tiling.splits, stream);
    default:
      return launch<T, Columns, 64>(op, tiling.splits, stream);
  }
}

template <class T>
void launch(const Matmul& op, const Tiling& tiling, Stream& stream) {
  switch (tiling.columns) {
    case 32:
      return launch<T, 32>(op, tiling, stream);
    case 48:
      return launch<T, 48>(op, tiling, stream);
    case 64:
      return launch<T, 64>(op, tiling, stream);
    default:
      return launch<T, 80>(op, tiling, stream);
  }
}

}  // namespace

// Where weights are large, reading them is the whole cost and a late beginning is not: that is left
// to cuBLASLt. The limit is the one measured for up to 8 rows (see gemv_good_rows), not for
// these.
bool skinny_is_good(const Matmul& op) {
  constexpr std::int64_t large = std::int64_t{24} << 20;
  return op.weight.count() * size_of(op.weight.dtype()) < large;
}

bool skinny_can_run(const Matmul& op) {
  const std::int64_t in = op.x.shape().back();
  return op.x.dtype() != DType::f32 && !op.transpose_weight && !op.transpose_x &&
         detail::ChannelRows(op.y).count() <= skinny_max_rows && in > 0 && in <= gemv_max_in &&
         rows_are_aligned(op.x) && rows_are_aligned(op.weight);
}

void skinny(const Matmul& op, Stream& stream) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, stream.device().index()),
        where);
  const Tiling best =
      tiling(op, multiprocessors(stream.device(), where), major >= 9 ? skinny_most_splits : 1);
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) launch<T>(op, best, stream);
  });
  check(cudaGetLastError(), where);
}

}  // namespace mamba::cuda
