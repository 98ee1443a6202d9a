// The Matmul of 9 to 64 rows: how it is cut into blocks. Numbers are from one H200, in a graph of
// dependent bf16 calls on weights that are not in the cache.
#include <algorithm>

#include "kernels/gpu/cuda.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/matmul/matmul.hpp"
#include "kernels/matmul/skinny.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "matmul";

// Wider tiles (48 to 80 weight rows, 32 or 64 rows of x) were hardly ever faster on an H200. Two
// blocks fit in a multiprocessor of an H200, one in 99 KB.
using Tile = SkinnyTile<32, 16, 4, 1, 8>;

template <class Load>
__global__ void __launch_bounds__(Tile::threads)
    skinny_kernel(const __grid_constant__ MatmulOperands<Load> op, const SkinnyCut cut) {
  skinny_product<Load, Tile>(op, cut, SkinnyY<Load>{op});
}

// What all tiles together fetch, in elements of depth (of 96 bytes each). At 147,456 the kernel is
// faster than cuBLASLt (768 x 1536, 64 rows: 4.2 us and 5.1), at 262,144 it depends (2048 x 4096,
// 16 rows: 8.3 us and 9.8; 1024 x 2048, 64 rows: 6.4 us and 5.7), from 294,912 on it is slower.
constexpr std::int64_t good_fetches = 200'000;
// Two blocks fit in each of 132 multiprocessors, but the kernel before may still have some. With
// 160 the kernel is faster than cuBLASLt (5120 x 160, 16 rows: 2.8 us and 3.3), with 192 as fast
// (1536 x 48, 64 rows: 2.4 us both), with 256 slower (2048 x 64, 64 rows: 2.5 us and 2.4); and 256
// in clusters of four are slower than 128 of two (2048 x 4096, 16 rows: 10.7 us and 8.3).
constexpr std::int64_t good_blocks = 200;
// More splits make a block's depth shorter and the blocks more. Where that left 2.0 times as many
// elements of depth to a block as there are blocks, it was slower or no faster (3072 x 768, 16
// rows: 3.4 us with one split, 3.8 us with two; 80 x 1536, 64 rows: 2.7 us with four and with
// eight), from 2.7 times on faster (96 x 2048, 64 rows: 3.0 us with four, 2.7 us with eight; 768 x
// 1536, 64 rows: 5.0 us with one, 4.2 us with two).
constexpr double depth_for_each_block = 2.5;

std::int64_t tiles_of(const Matmul& op) {
  return divide_up(op.y.shape().back(), Tile::columns) *
         divide_up(detail::ChannelRows(op.y).count(), Tile::rows);
}

int splits_of(const Matmul& op, int most) {
  int splits = 1;
  while (splits < most) {
    const std::int64_t blocks = tiles_of(op) * splits * 2;
    const std::int64_t depth = op.x.shape().back() / (splits * 2);
    const double least = depth_for_each_block * static_cast<double>(blocks);
    if (blocks > good_blocks || depth < Tile::depth || static_cast<double>(depth) < least) break;
    splits *= 2;
  }
  return splits;
}

template <class Load>
void run_skinny(const Matmul& op, int splits, Stream& stream) {
  const MatmulOperands<Load> operands(op);
  const SkinnyLaunch<Load, Tile> cut(operands, splits, StreamAccess::constant_weights(stream));
  launch_clusters(skinny_kernel<Load>, splits, cut.grid, Tile::threads, cut.shared, stream, where,
                  operands, cut.cut);
}

}  // namespace

bool skinny_is_good(const Matmul& op) {
  const std::int64_t tiles = tiles_of(op);
  return tiles <= good_blocks && tiles * op.x.shape().back() <= good_fetches;
}

bool skinny_can_run(const Matmul& op) {
  const std::int64_t in = op.x.shape().back();
  const bool taken =
      visit_load(op, [](auto type) { return skinny_takes<typename decltype(type)::type>; });
  return taken && !op.transpose_weight && !op.transpose_x &&
         detail::ChannelRows(op.y).count() <= skinny_max_rows && in > 0 && in <= gemv_max_in &&
         rows_are_aligned(op.x) && rows_are_aligned(op.weight);
}

void skinny(const Matmul& op, Stream& stream) {
  visit_load(op, [&](auto type) {
    using Load = typename decltype(type)::type;
    if constexpr (skinny_takes<Load>) {
      const int capability = capability_of(skinny_kernel<Load>, stream.device(), where);
      run_skinny<Load>(op, splits_of(op, capability >= sm_90 ? skinny_most_splits : 1), stream);
    }
  });
}

}  // namespace mamba::cuda
