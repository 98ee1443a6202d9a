#include "host/ops/matmul.hpp"

#include <blis.h>

#include <algorithm>
#include <cstring>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/stream_access.hpp"
#include "host/ops/gemv.hpp"
#include "host/ops/storage.hpp"

namespace mamba::host {

namespace {

const char* at(const ConstTensorView& view, std::int64_t element) {
  return static_cast<const char*>(view.data()) + element * size_of(view.dtype());
}
char* at(const TensorView& view, std::int64_t element) {
  return static_cast<char*>(view.data()) + element * size_of(view.dtype());
}

// Where part i of n begins when `size` is cut into nearly equal parts of whole multiples of `unit`.
std::int64_t part(std::int64_t size, std::int64_t i, std::int64_t n, std::int64_t unit) {
  const std::int64_t units = (size + unit - 1) / unit;
  return std::min(size, units * i / n * unit);
}

// Multiplications that make a thread worth waking, which takes about 2 us: a GEMV waits for memory,
// a GEMM does ten times as many in the same time.
constexpr std::int64_t gemv_grain = std::int64_t{1} << 15;
constexpr std::int64_t gemm_grain = std::int64_t{1} << 18;

// How many products each element of y is the sum of.
std::int64_t depth_of(const Matmul& op) {
  if (op.transpose_x) return detail::ChannelRows(op.x).count();
  return op.x.shape().back();
}

int useful_threads(const Matmul& op, const Stream& stream, std::int64_t grain) {
  const std::int64_t work = op.y.count() * depth_of(op);
  return static_cast<int>(std::clamp<std::int64_t>(work / grain, 1, stream.threads()));
}

// y[r, first..last) of one row = sums + bias.
void finish(const Matmul& op, const float* sums, std::int64_t y_offset, std::int64_t first,
            std::int64_t last) {
  narrow(sums, op.bias ? at(op.bias, first) : nullptr, op.x.dtype(), at(op.y, y_offset + first),
         op.y.dtype(), last - first);
}

void gemv(const Matmul& op, Stream& stream) {
  const detail::ChannelRows x_rows(op.x);
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t out = op.weight.dim(0);
  Gemv gemv;
  gemv.weight = op.weight.data();
  gemv.dtype = op.weight.dtype();
  gemv.weight_pitch = op.weight.row_pitch();
  gemv.in = op.weight.dim(1);
  gemv.x_pitch = (gemv.in + Gemv::alignment - 1) / Gemv::alignment * Gemv::alignment;
  for (gemv.rows = 1; gemv.rows < x_rows.count();) gemv.rows *= 2;
  gemv.sums_pitch = out;

  Scratch scratch(stream);
  float* x = scratch.take({gemv.rows, gemv.x_pitch}, DType::f32).data<float>();
  gemv.sums = scratch.take({gemv.rows, out}, DType::f32).data<float>();
  gemv.x = x;
  std::memset(x, 0, static_cast<std::size_t>(gemv.rows * gemv.x_pitch) * sizeof(float));
  for (std::int64_t r = 0; r < x_rows.count(); ++r) {
    widen(at(op.x, x_rows.offset(r)), op.x.dtype(), x + r * gemv.x_pitch, gemv.in);
  }
  const int threads = useful_threads(op, stream, gemv_grain);
  StreamAccess::team(stream).run(threads, [&](int i) {
    const std::int64_t first = part(out, i, threads, 16);
    const std::int64_t last = part(out, i + 1, threads, 16);
    run(gemv, first, last);
    for (std::int64_t r = 0; r < x_rows.count(); ++r) {
      finish(op, gemv.sums + r * out + first, y_rows.offset(r), first, last);
    }
  });
}

// One factor of a product, element (i, k) of which stands in row i and column k of its operand, or
// the other way round where it is transposed.
struct Factor {
  const ConstTensorView& view;
  detail::ChannelRows rows;
  bool transposed;

  Factor(const ConstTensorView& operand, bool is_transposed)
      : view(operand), rows(operand), transposed(is_transposed) {}

  // sgemm can read it where it is.
  bool direct() const { return view.dtype() == DType::f32 && rows.evenly_pitched(); }
};

// A rectangle of a factor as sgemm takes it: element (i, k) is at[i * i_stride + k * k_stride].
struct Rectangle {
  const float* at;
  std::int64_t i_stride;
  std::int64_t k_stride;
};

// Elements i .. i + i_count, k .. k + k_count: in place where `buffer` is nullptr, else as a copy.
Rectangle take(const Factor& factor, float* buffer, std::int64_t i, std::int64_t i_count,
               std::int64_t k, std::int64_t k_count) {
  const std::int64_t row = factor.transposed ? k : i;
  const std::int64_t column = factor.transposed ? i : k;
  const std::int64_t row_count = factor.transposed ? k_count : i_count;
  const std::int64_t column_count = factor.transposed ? i_count : k_count;
  const float* from = buffer;
  std::int64_t pitch = column_count;
  if (buffer == nullptr) {
    pitch = factor.rows.time_pitch;
    from = factor.view.data<float>() + row * pitch + column;
  } else {
    for (std::int64_t r = 0; r < row_count; ++r) {
      widen(at(factor.view, factor.rows.offset(row + r) + column), factor.view.dtype(),
            buffer + r * pitch, column_count);
    }
  }
  return factor.transposed ? Rectangle{from, 1, pitch} : Rectangle{from, pitch, 1};
}

// c[i, j] = a[i, k] b[j, k] summed over k, or c plus that.
void sgemm(const Rectangle& a, const Rectangle& b, std::int64_t m, std::int64_t n, std::int64_t k,
           float* c, std::int64_t c_pitch, bool add) {
  float one = 1;
  float beta = add ? 1 : 0;
  bli_sgemm(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, m, n, k, &one, const_cast<float*>(a.at),
            a.i_stride, a.k_stride, const_cast<float*>(b.at), b.k_stride, b.i_stride, &beta, c,
            c_pitch, 1);
}

// What one thread multiplies with. An operand that sgemm cannot read or write in place goes block
// by block through these f32 copies (then not nullptr).
struct Blocks {
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t depth;
  float* x;       // [rows, depth]
  float* weight;  // [columns, depth]
  float* y;       // [rows, columns]
};

// The sum over k of one block of y, which begins as what is there when the product accumulates.
void sum_block(const Matmul& op, const Factor& x, const Factor& weight, const Blocks& blocks,
               std::int64_t depth, std::int64_t r, std::int64_t m, std::int64_t c, std::int64_t n,
               float* y, std::int64_t y_pitch) {
  std::int64_t k = 0;
  do {  // once even for depth 0, whose sum is zero
    const std::int64_t count = std::min(blocks.depth, depth - k);
    const Rectangle a = take(x, blocks.x, r, m, k, count);
    const Rectangle b = take(weight, blocks.weight, c, n, k, count);
    sgemm(a, b, m, n, count, y, y_pitch, k > 0 || op.accumulate);
    k += count;
  } while (k < depth);
}

// The rectangle of y in rows [first_row, last_row) and columns [first_column, last_column).
void gemm_part(const Matmul& op, const Blocks& blocks, std::int64_t depth, std::int64_t first_row,
               std::int64_t last_row, std::int64_t first_column, std::int64_t last_column) {
  const Factor x(op.x, op.transpose_x);
  const Factor weight(op.weight, op.transpose_weight);
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t y_pitch = blocks.y == nullptr ? y_rows.time_pitch : blocks.columns;
  for (std::int64_t c = first_column; c < last_column; c += blocks.columns) {
    const std::int64_t n = std::min(blocks.columns, last_column - c);
    for (std::int64_t r = first_row; r < last_row; r += blocks.rows) {
      const std::int64_t m = std::min(blocks.rows, last_row - r);
      float* y = blocks.y == nullptr ? op.y.data<float>() + y_rows.offset(r) + c : blocks.y;
      for (std::int64_t i = 0; i < m && blocks.y != nullptr && op.accumulate; ++i) {
        widen(at(op.y, y_rows.offset(r + i) + c), op.y.dtype(), y + i * y_pitch, n);
      }
      sum_block(op, x, weight, blocks, depth, r, m, c, n, y, y_pitch);
      if (blocks.y == nullptr && !op.bias) continue;
      for (std::int64_t i = 0; i < m; ++i) {
        finish(op, y + i * y_pitch, y_rows.offset(r + i), c, c + n);
      }
    }
  }
}

void gemm(const Matmul& op, Stream& stream, bool cut_rows) {
  const detail::ChannelRows y_rows(op.y);
  const Factor x_factor(op.x, op.transpose_x);
  const Factor weight_factor(op.weight, op.transpose_weight);
  const std::int64_t rows = y_rows.count();
  const std::int64_t out = op.y.shape().back();
  const std::int64_t depth = depth_of(op);
  const bool copy_x = !x_factor.direct();
  const bool copy_weight = !weight_factor.direct();
  const bool copy_y = op.y.dtype() != DType::f32 || !y_rows.evenly_pitched();
  const std::int64_t block_rows = copy_x || copy_y ? std::min<std::int64_t>(rows, 256) : rows;
  const std::int64_t block_columns = copy_weight || copy_y ? std::min<std::int64_t>(out, 512) : out;
  // All rows of a batch take part in each sum of a weight's gradient.
  const std::int64_t most = op.transpose_x ? 1024 : 8192;
  const std::int64_t block_depth = copy_x || copy_weight ? std::min(depth, most) : depth;
  const int threads = useful_threads(op, stream, gemm_grain);

  Scratch scratch(stream);
  const auto buffers = [&](bool needed, std::int64_t height, std::int64_t width) {
    return needed ? scratch.take({threads, height, width}, DType::f32).data<float>() : nullptr;
  };
  float* x = buffers(copy_x, block_rows, block_depth);
  float* weight = buffers(copy_weight, block_columns, block_depth);
  float* y = buffers(copy_y, block_rows, block_columns);
  StreamAccess::team(stream).run(threads, [&](int i) {
    const auto own = [i](float* all, std::int64_t height, std::int64_t width) {
      return all == nullptr ? nullptr : all + i * height * width;
    };
    const Blocks blocks{block_rows,
                        block_columns,
                        std::max<std::int64_t>(block_depth, 1),
                        own(x, block_rows, block_depth),
                        own(weight, block_columns, block_depth),
                        own(y, block_rows, block_columns)};
    if (cut_rows) {
      gemm_part(op, blocks, depth, part(rows, i, threads, 6), part(rows, i + 1, threads, 6), 0,
                out);
    } else {
      gemm_part(op, blocks, depth, 0, rows, part(out, i, threads, 16),
                part(out, i + 1, threads, 16));
    }
  });
}

}  // namespace

bool can_run(const Matmul& op, MatmulPlan plan) {
  const bool plain = !op.transpose_x && !op.transpose_weight && !op.accumulate;
  return plan != MatmulPlan::gemv || (plain && detail::ChannelRows(op.x).count() <= Gemv::max_rows);
}

MatmulPlan plan(const Matmul& op) {
  if (can_run(op, MatmulPlan::gemv)) return MatmulPlan::gemv;
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  return op.y.shape().back() >= rows ? MatmulPlan::gemm_columns : MatmulPlan::gemm_rows;
}

void run(const Matmul& op, Stream& stream, MatmulPlan plan) {
  if (op.y.count() == 0) return;
  if (plan == MatmulPlan::gemv) return gemv(op, stream);
  gemm(op, stream, plan == MatmulPlan::gemm_rows);
}

void run(const Matmul& op, Stream& stream) { run(op, stream, plan(op)); }

}  // namespace mamba::host
