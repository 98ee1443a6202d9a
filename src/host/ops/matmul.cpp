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

int useful_threads(const Matmul& op, const Stream& stream, std::int64_t grain) {
  const std::int64_t work = op.y.count() * op.weight.dim(1);
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

// c[m, n] = a[m, k] b[n, k]^T, all f32 with rows a pitch apart.
struct Sgemm {
  std::int64_t m, n, k;
  const float* a;
  std::int64_t a_pitch;
  const float* b;
  std::int64_t b_pitch;
  float* c;
  std::int64_t c_pitch;
};

void run(const Sgemm& gemm) {
  float one = 1;
  float zero = 0;
  bli_sgemm(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, gemm.m, gemm.n, gemm.k, &one,
            const_cast<float*>(gemm.a), gemm.a_pitch, 1, const_cast<float*>(gemm.b), 1,
            gemm.b_pitch, &zero, gemm.c, gemm.c_pitch, 1);
}

// What one thread multiplies with: sgemm reads and writes f32 operands where they are when their
// rows are one pitch apart; any other operand goes block by block through these f32 copies (then
// not nullptr).
struct Blocks {
  std::int64_t rows;
  std::int64_t columns;
  float* x;       // [rows, in]
  float* weight;  // [columns, in]
  float* y;       // [rows, columns]
};

// Rows first .. first + count of x, where sgemm can read them.
const float* take_x(const Matmul& op, const detail::ChannelRows& x_rows, const Blocks& blocks,
                    std::int64_t first, std::int64_t count) {
  if (blocks.x == nullptr) return op.x.data<float>() + x_rows.offset(first);
  const std::int64_t in = op.weight.dim(1);
  for (std::int64_t i = 0; i < count; ++i) {
    widen(at(op.x, x_rows.offset(first + i)), op.x.dtype(), blocks.x + i * in, in);
  }
  return blocks.x;
}

const float* take_weight(const Matmul& op, const Blocks& blocks, std::int64_t first,
                         std::int64_t count) {
  const std::int64_t pitch = op.weight.row_pitch();
  if (blocks.weight == nullptr) return op.weight.data<float>() + first * pitch;
  const std::int64_t in = op.weight.dim(1);
  for (std::int64_t o = 0; o < count; ++o) {
    widen(at(op.weight, (first + o) * pitch), op.weight.dtype(), blocks.weight + o * in, in);
  }
  return blocks.weight;
}

// The rectangle of y in rows [first_row, last_row) and columns [first_column, last_column).
void gemm_part(const Matmul& op, const Blocks& blocks, std::int64_t first_row,
               std::int64_t last_row, std::int64_t first_column, std::int64_t last_column) {
  const detail::ChannelRows x_rows(op.x);
  const detail::ChannelRows y_rows(op.y);
  Sgemm gemm{};
  gemm.k = op.weight.dim(1);
  gemm.a_pitch = blocks.x == nullptr ? x_rows.time_pitch : gemm.k;
  gemm.b_pitch = blocks.weight == nullptr ? op.weight.row_pitch() : gemm.k;
  gemm.c_pitch = blocks.y == nullptr ? y_rows.time_pitch : blocks.columns;
  for (std::int64_t c = first_column; c < last_column; c += blocks.columns) {
    gemm.n = std::min(blocks.columns, last_column - c);
    gemm.b = take_weight(op, blocks, c, gemm.n);
    for (std::int64_t r = first_row; r < last_row; r += blocks.rows) {
      gemm.m = std::min(blocks.rows, last_row - r);
      gemm.a = take_x(op, x_rows, blocks, r, gemm.m);
      gemm.c = blocks.y == nullptr ? op.y.data<float>() + y_rows.offset(r) + c : blocks.y;
      run(gemm);
      if (blocks.y == nullptr && !op.bias) continue;
      for (std::int64_t i = 0; i < gemm.m; ++i) {
        finish(op, gemm.c + i * gemm.c_pitch, y_rows.offset(r + i), c, c + gemm.n);
      }
    }
  }
}

void gemm(const Matmul& op, Stream& stream, bool cut_rows) {
  const detail::ChannelRows x_rows(op.x);
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t rows = x_rows.count();
  const std::int64_t in = op.weight.dim(1);
  const std::int64_t out = op.weight.dim(0);
  const bool f32 = op.x.dtype() == DType::f32;
  const bool copy_x = !f32 || !x_rows.evenly_pitched();
  const bool copy_weight = !f32;
  const bool copy_y = op.y.dtype() != DType::f32 || !y_rows.evenly_pitched();
  const std::int64_t block_rows = copy_x || copy_y ? std::min<std::int64_t>(rows, 256) : rows;
  const std::int64_t block_columns = copy_weight || copy_y ? std::min<std::int64_t>(out, 512) : out;
  const int threads = useful_threads(op, stream, gemm_grain);

  Scratch scratch(stream);
  const auto take = [&](bool needed, std::int64_t height, std::int64_t width) {
    return needed ? scratch.take({threads, height, width}, DType::f32).data<float>() : nullptr;
  };
  float* x = take(copy_x, block_rows, in);
  float* weight = take(copy_weight, block_columns, in);
  float* y = take(copy_y, block_rows, block_columns);
  StreamAccess::team(stream).run(threads, [&](int i) {
    const auto own = [i](float* all, std::int64_t height, std::int64_t width) {
      return all == nullptr ? nullptr : all + i * height * width;
    };
    const Blocks blocks{block_rows, block_columns, own(x, block_rows, in),
                        own(weight, block_columns, in), own(y, block_rows, block_columns)};
    if (cut_rows) {
      gemm_part(op, blocks, part(rows, i, threads, 6), part(rows, i + 1, threads, 6), 0, out);
    } else {
      gemm_part(op, blocks, 0, rows, part(out, i, threads, 16), part(out, i + 1, threads, 16));
    }
  });
}

}  // namespace

MatmulPlan plan(const Matmul& op) {
  const std::int64_t rows = detail::ChannelRows(op.x).count();
  if (rows <= Gemv::max_rows) return MatmulPlan::gemv;
  return op.weight.dim(0) >= rows ? MatmulPlan::gemm_columns : MatmulPlan::gemm_rows;
}

bool can_run(const Matmul& op, MatmulPlan plan) {
  return plan != MatmulPlan::gemv || detail::ChannelRows(op.x).count() <= Gemv::max_rows;
}

void run(const Matmul& op, Stream& stream, MatmulPlan plan) {
  if (op.y.count() == 0) return;
  if (plan == MatmulPlan::gemv) return gemv(op, stream);
  gemm(op, stream, plan == MatmulPlan::gemm_rows);
}

void run(const Matmul& op, Stream& stream) { run(op, stream, plan(op)); }

}  // namespace mamba::host
