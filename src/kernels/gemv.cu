// The Matmul of few rows: which kernel, and how its block is cut.
#include <algorithm>

#include "detail/visit.hpp"
#include "kernels/cuda.cuh"
#include "kernels/gemv_kernels.cuh"
#include "kernels/matmul.hpp"

namespace mamba::cuda {

namespace {

constexpr std::int64_t fma_max_rows = 8;
constexpr std::int64_t mma_max_rows = 16;

// Whether every row that a kernel reads begins and ends on a multiple of 16 bytes.
bool rows_are_aligned(const ConstTensorView& view) {
  const host::ChannelRows rows(view);
  const std::int64_t size = size_of(view.dtype());
  return is_aligned(view.data(), rows.time_pitch * size, 16) &&
         is_aligned(view.data(), rows.batch_pitch * size, 16) &&
         view.shape().back() * size % 16 == 0;
}

bool is_aligned(const Matmul& op) { return rows_are_aligned(op.x) && rows_are_aligned(op.weight); }

// `parts` is how many times one warp would have to load to get to the end of a weight row. Warps
// share them, at most `max_splits` to a row, so that each has up to `each` loads in flight; short
// rows leave room in the block for other tiles.
struct Block {
  int splits;
  int tiles;

  Block(std::int64_t parts, int each, int max_splits) {
    const std::int64_t rounds = std::max<std::int64_t>(
        1, (parts + each * max_splits - 1) / (std::int64_t{each} * max_splits));
    const std::int64_t share = rounds * each;
    splits = static_cast<int>(std::max<std::int64_t>(1, (parts + share - 1) / share));
    tiles = std::max(1, 4 / splits);
  }
  int warps() const { return splits * tiles; }
  unsigned count(std::int64_t columns, int width) const {
    const std::int64_t block_columns = std::int64_t{tiles} * width;
    return static_cast<unsigned>((columns + block_columns - 1) / block_columns);
  }
};

template <class T, int Halves>
void launch_mma(const Matmul& op, cudaStream_t stream) {
  constexpr int unroll = 4;
  const MatmulOperands<T> operands(op);
  const Block block((operands.in + 31) / 32, unroll, 16);
  const auto shared = static_cast<std::size_t>(block.warps() * 64 * Halves) * sizeof(float);
  gemv_mma_kernel<T, Halves, unroll>
      <<<block.count(operands.out, 8), block.warps() * 32, shared, stream>>>(operands,
                                                                             block.splits);
}

template <class T, int N, int Rows>
void launch_fma(const Matmul& op, cudaStream_t stream) {
  const MatmulOperands<T> operands(op);
  const Block block((operands.in + 32 * N - 1) / (32 * N), 2, 8);
  const auto shared =
      static_cast<std::size_t>(block.warps() * Rows * gemv_fma_columns) * sizeof(float);
  gemv_fma_kernel<T, N, Rows>
      <<<block.count(operands.out, gemv_fma_columns), block.warps() * 32, shared, stream>>>(
          operands, block.splits);
}

template <class T, int N>
void launch_fma(const Matmul& op, std::int64_t rows, cudaStream_t stream) {
  if (rows == 1) return launch_fma<T, N, 1>(op, stream);
  if (rows <= 4) return launch_fma<T, N, 4>(op, stream);
  launch_fma<T, N, 8>(op, stream);
}

bool uses_mma(const Matmul& op) {
  constexpr std::int64_t int_range = std::int64_t{1} << 30;  // its kernel counts elements in ints
  return op.x.dtype() != DType::f32 && is_aligned(op) && op.weight.dim(1) < int_range;
}

}  // namespace

std::int64_t gemv_max_rows(const Matmul& op) { return uses_mma(op) ? mma_max_rows : fma_max_rows; }

void gemv(const Matmul& op, Stream& stream) {
  const std::int64_t rows = host::ChannelRows(op.x).count();
  const cudaStream_t queue = handle(stream);
  detail::visit(op.x.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      if (!uses_mma(op)) return launch_fma<T, 1>(op, rows, queue);
      return rows <= 8 ? launch_mma<T, 1>(op, queue) : launch_mma<T, 2>(op, queue);
    } else {
      return is_aligned(op) ? launch_fma<T, 4>(op, rows, queue) : launch_fma<T, 1>(op, rows, queue);
    }
  });
  check(cudaGetLastError(), "matmul");
}

}  // namespace mamba::cuda
