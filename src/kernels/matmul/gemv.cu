// The Matmul of few rows: which kernel, and how its launch is cut. Numbers are from one H200, in a
// graph of dependent calls on weights that are not in the cache.
#include <algorithm>

#include "kernels/gpu/cuda.cuh"
#include "kernels/matmul/gemv_rows.cuh"
#include "kernels/matmul/matmul.hpp"

namespace mamba::cuda {

namespace {

bool is_aligned(const Matmul& op) { return rows_are_aligned(op.x) && rows_are_aligned(op.weight); }

// A launch: tiles of `columns` weight rows. The warps of a tile share the `steps` loads that one
// warp would need to get to the end of a weight row, as evenly as `max_splits` warps can; short
// rows leave room in the block for more tiles.
struct Cut {
  int columns;
  int splits;
  int tiles;

  Cut(int columns_, std::int64_t steps, int max_splits) : columns(columns_) {
    const std::int64_t rounds = std::max<std::int64_t>(1, (steps + max_splits - 1) / max_splits);
    splits = static_cast<int>(std::max<std::int64_t>(1, (steps + rounds - 1) / rounds));
    tiles = std::max(1, 4 / splits);
  }
  unsigned blocks(std::int64_t out) const {
    const std::int64_t width = std::int64_t{tiles} * columns;
    return static_cast<unsigned>((out + width - 1) / width);
  }
  int threads() const { return splits * tiles * 32; }
  std::size_t shared(int rows) const {
    return static_cast<std::size_t>(splits * tiles * rows * columns) * sizeof(float);
  }
};

template <class Load>
void launch_mma(const Matmul& op, Stream& stream) {
  const MatmulOperands<Load> operands(op);
  const Cut cut(gemv_mma_columns, (operands.in + gemv_mma_step - 1) / gemv_mma_step,
                operands.out < 2048 ? 24 : 12);
  launch_chained(gemv_mma_kernel<Load>, cut.blocks(operands.out), cut.threads(), cut.shared(8),
                 stream, "matmul", operands, cut.splits, StreamAccess::constant_weights(stream));
}

template <class Load, int N, int Rows, int Columns>
void launch_fma(const Matmul& op, int max_splits, Stream& stream) {
  const MatmulOperands<Load> operands(op);
  const Cut cut(Columns, (operands.in + 32 * N - 1) / (32 * N), max_splits);
  launch_chained(gemv_fma_kernel<Load, N, Rows, Columns>, cut.blocks(operands.out), cut.threads(),
                 cut.shared(Rows), stream, "matmul", operands, cut.splits,
                 StreamAccess::constant_weights(stream));
}

template <class Load>
void launch_rows(const Matmul& op, Stream& stream) {
  const MatmulOperands<Load> operands(op);
  const RowsCut cut(operands, StreamAccess::constant_weights(stream), stream.device(), "matmul");
  visit_ahead(cut, [&](auto ahead) {
    launch_chained(gemv_rows_kernel<Load, ahead()>, cut.blocks, cut.threads(),
                   RowsMemory<Load, ahead()>::bytes(operands.in, cut.warps), stream, "matmul",
                   operands, cut);
  });
}

// Few weight rows: one a tile, with a warp for each load of it, so that as many multiprocessors as
// possible start on them at once (80 x 1536: 2.1 us; 3.4 us with eight a tile). Many: four, so that
// x, which comes from L1, is read once for four, and fewer warps each, so that blocks are small and
// many of them run at once. With more rows of x there are registers for two.
template <class Load, int Rows>
void fma(const Matmul& op, Stream& stream) {
  const std::int64_t out = op.weight.dim(0);
  const bool many = out >= 8192;
  if (out < 512) return launch_fma<Load, Load::N, Rows, 1>(op, Rows <= 2 ? 20 : 12, stream);
  if (out < 2048) return launch_fma<Load, Load::N, Rows, 2>(op, 8, stream);
  if constexpr (Rows * sizeof(typename Load::T) <= 4) {
    launch_fma<Load, Load::N, Rows, 4>(op, many ? 1 : 4, stream);
  } else {
    launch_fma<Load, Load::N, Rows, 2>(op, many ? 1 : 2, stream);
  }
}

// Unaligned operands: one element at a time.
template <class Load>
void scalar(const Matmul& op, std::int64_t rows, Stream& stream) {
  if (rows == 1) return launch_fma<Load, 1, 1, 2>(op, 8, stream);
  launch_fma<Load, 1, 8, 2>(op, 8, stream);
}

}  // namespace

// From 3 rows on, large weights stream faster through cuBLASLt's pipelines than through our
// kernels' registers (4 rows, bf16, 50280 x 768: 22.8 us and 26.8; but 768 x 1536: 5.8 us and 3.4).
std::int64_t gemv_good_rows(const Matmul& op) {
  constexpr std::int64_t large = std::int64_t{24} << 20;
  const bool small = op.weight.count() * size_of(op.weight.dtype()) < large;
  return small || op.x.dtype() == DType::f32 || !is_aligned(op) ? gemv_max_rows : 2;
}

void gemv(const Matmul& op, Stream& stream) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  visit_load(op, [&](auto type) {
    using Load = typename decltype(type)::type;
    if (!is_aligned(op)) return scalar<Load>(op, rows, stream);
    if (streams_rows(op)) return launch_rows<Load>(op, stream);
    if (rows == 1) return fma<Load, 1>(op, stream);
    if constexpr (sizeof(typename Load::T) == 2) {
      // With 4 rows the two kernels are equal: the tensor cores' is faster where it has many tiles
      // (3072 x 768: 3.8 us and 4.3), the other where it has few (192 x 5120: 6.6 us and 3.7).
      if (rows == 2) return fma<Load, 2>(op, stream);
      if (rows <= 4 && op.weight.dim(0) < 1024) return fma<Load, 4>(op, stream);
      launch_mma<Load>(op, stream);
    } else {
      if (rows <= 4) return fma<Load, 4>(op, stream);
      fma<Load, 8>(op, stream);
    }
  });
}

}  // namespace mamba::cuda
