#include "host/ops/matmul/matmul.hpp"

#include <algorithm>
#include <cstring>

#include "detail/backend.hpp"
#include "detail/channel_rows.hpp"
#include "detail/stream_access.hpp"
#include "host/ops/matmul/gemm.hpp"
#include "host/ops/matmul/gemv.hpp"
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

// Up to so many rows are packed and not the weights.
constexpr std::int64_t most_few_rows = 64;
// Up to so many columns also: they would fill a part of a vector.
constexpr std::int64_t most_few_columns = 8;

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
  const Factor weight(op.weight, false);
  const std::int64_t out = op.weight.dim(0);
  Gemv gemv;
  gemv.weight = &weight;
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

// How a product is cut into blocks that the caches hold, and what one thread has for them.
struct Blocks {
  std::int64_t depth = 0;
  std::int64_t rows = 0;     // of a block of sums
  std::int64_t columns = 0;  // of a block of sums
  float* sums = nullptr;     // [rows, columns]; nullptr: y itself
};

// A block of sums over all of `depth`, a piece of which is packed at a time. `add`: to what is
// there.
void multiply_all(const Gemm& gemm, GemmPiece piece, std::int64_t depth, bool add) {
  for (std::int64_t k = 0; k < depth; k += Gemm::depth) {
    piece.first_k = k;
    piece.depth = std::min(Gemm::depth, depth - k);
    piece.add = add || k > 0;
    pack(gemm, piece);
    multiply(gemm, piece);
  }
}

// Rows [first_row, last_row) and columns [first_column, last_column) of y. The weights are packed,
// which many rows pay for.
void many_rows(const Matmul& op, const Gemm& gemm, const Blocks& blocks, std::int64_t first_row,
               std::int64_t last_row, std::int64_t first_column, std::int64_t last_column) {
  const detail::ChannelRows y_rows(op.y);
  const bool direct = blocks.sums == nullptr;
  GemmPiece piece;
  piece.sums_pitch = direct ? y_rows.time_pitch : blocks.columns;
  for (std::int64_t c = first_column; c < last_column; c += blocks.columns) {
    const std::int64_t n = std::min(blocks.columns, last_column - c);
    for (std::int64_t r = first_row; r < last_row; r += blocks.rows) {
      const std::int64_t m = std::min(blocks.rows, last_row - r);
      piece.first_row = r;
      piece.rows = m;
      piece.first_column = c;
      piece.columns = n;
      piece.sums = direct ? op.y.data<float>() + y_rows.offset(r) + c : blocks.sums;
      for (std::int64_t i = 0; i < m; ++i) {
        float* sums = piece.sums + i * piece.sums_pitch;
        if (op.accumulate && !direct) {
          widen(at(op.y, y_rows.offset(r + i) + c), op.y.dtype(), sums, n);
        } else if (!op.accumulate && blocks.depth == 0) {
          std::fill_n(sums, n, 0.0f);
        }
      }
      multiply_all(gemm, piece, blocks.depth, op.accumulate);
      if (direct && !op.bias) continue;
      for (std::int64_t i = 0; i < m; ++i) {
        finish(op, piece.sums + i * piece.sums_pitch, y_rows.offset(r + i), c, c + n);
      }
    }
  }
}

// What a block of sums is added to: y, where the product accumulates. sums [columns, rows].
void load_sums(const Matmul& op, const detail::ChannelRows& y_rows, std::int64_t first_row,
               std::int64_t rows, std::int64_t first_column, std::int64_t columns, float* sums) {
  if (!op.accumulate) return;
  float row[Gemm::copied_rows];
  for (std::int64_t r = 0; r < rows; ++r) {
    widen(at(op.y, y_rows.offset(first_row + r) + first_column), op.y.dtype(), row, columns);
    for (std::int64_t i = 0; i < columns; ++i) sums[i * rows + r] = row[i];
  }
}

void store_sums(const Matmul& op, const detail::ChannelRows& y_rows, std::int64_t first_row,
                std::int64_t rows, std::int64_t first_column, std::int64_t columns,
                const float* sums) {
  float row[Gemm::copied_rows];
  const bool as_they_are = op.y.dtype() == DType::f32 && !op.bias;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t offset = y_rows.offset(first_row + r);
    float* to = as_they_are ? op.y.data<float>() + offset + first_column : row;
    for (std::int64_t i = 0; i < columns; ++i) to[i] = sums[i * rows + r];
    if (!as_they_are) finish(op, row, offset, first_column, first_column + columns);
  }
}

// All rows and columns [first_column, last_column) of y. The rows are packed and the weights read
// once, from first to last. The sums have a row for each column of y.
void few_rows(const Matmul& op, const Gemm& gemm, const Blocks& blocks, std::int64_t first_column,
              std::int64_t last_column) {
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t rows = blocks.rows;
  const auto weight_row = [&](std::int64_t c) {
    return gemm.broadcast->row(std::min(c, last_column));
  };
  GemmPiece piece;
  piece.columns = rows;
  piece.depth = blocks.depth;
  piece.sums = blocks.sums;
  piece.sums_pitch = rows;
  pack(gemm, piece);
  for (std::int64_t c = first_column; c < last_column; c += Gemm::copied_rows) {
    const std::int64_t n = std::min(Gemm::copied_rows, last_column - c);
    piece.first_row = c;
    piece.rows = n;
    piece.next = weight_row(c + n);
    piece.next_end = weight_row(c + n + Gemm::copied_rows);
    multiply(gemm, piece);
    store_sums(op, y_rows, 0, rows, c, n, blocks.sums);
  }
}

// Rows [first_row, last_row) and all columns of y, which are few: a piece of the rows is packed at
// a time. The sums have a row for each column of y.
void few_columns(const Matmul& op, const Gemm& gemm, const Blocks& blocks, std::int64_t first_row,
                 std::int64_t last_row) {
  const detail::ChannelRows y_rows(op.y);
  const std::int64_t out = op.y.shape().back();
  GemmPiece piece;
  piece.sums = blocks.sums;
  for (std::int64_t r = first_row; r < last_row; r += blocks.rows) {
    const std::int64_t rows = std::min(blocks.rows, last_row - r);
    piece.first_column = r;
    piece.columns = rows;
    piece.sums_pitch = rows;
    for (std::int64_t c = 0; c < out; c += Gemm::copied_rows) {
      const std::int64_t n = std::min(Gemm::copied_rows, out - c);
      piece.first_row = c;
      piece.rows = n;
      load_sums(op, y_rows, r, rows, c, n, blocks.sums);
      multiply_all(gemm, piece, blocks.depth, op.accumulate);
      store_sums(op, y_rows, r, rows, c, n, blocks.sums);
    }
  }
}

void gemm(const Matmul& op, Stream& stream, MatmulPlan plan, Words words) {
  const detail::ChannelRows y_rows(op.y);
  const Factor x(op.x, op.transpose_x);
  const Factor weight(op.weight, op.transpose_weight);
  const std::int64_t rows = y_rows.count();
  const std::int64_t out = op.y.shape().back();
  const std::int64_t depth = depth_of(op);
  const bool all_rows = plan == MatmulPlan::gemm_few_rows;
  const bool packs_x = all_rows || plan == MatmulPlan::gemm_few_columns;
  const bool direct = !packs_x && op.y.dtype() == DType::f32 && y_rows.evenly_pitched();
  int threads = useful_threads(op, stream, gemm_grain);
  if (plan == MatmulPlan::gemm_few_columns) {  // whose rows are cut in pieces of 32
    threads = static_cast<int>(std::min<std::int64_t>(threads, (rows + 31) / 32));
  }

  Blocks blocks;
  blocks.depth = depth;
  blocks.rows = all_rows || direct ? rows : std::min<std::int64_t>(rows, packs_x ? 128 : 512);
  blocks.columns = std::min<std::int64_t>(out, packs_x ? Gemm::copied_rows : 512);
  Gemm factors;
  factors.broadcast = packs_x ? &weight : &x;
  factors.lanes = packs_x ? &x : &weight;
  factors.words = words;
  const std::int64_t packed_size = Gemm::padded(packs_x ? blocks.rows : blocks.columns) *
                                   (all_rows ? depth : std::min(depth, Gemm::depth));
  const std::int64_t sums_size = direct ? 0 : blocks.rows * blocks.columns;
  Scratch scratch(stream);
  const auto floats = [&](std::int64_t each) {
    return scratch.take({threads, each}, DType::f32).data<float>();
  };
  float* packed = floats(packed_size);
  float* copy = floats(Gemm::copy_size);
  float* sums = floats(sums_size);
  StreamAccess::team(stream).run(threads, [&](int i) {
    Gemm gemm = factors;
    gemm.packed = packed + i * packed_size;
    gemm.copy = copy + i * Gemm::copy_size;
    Blocks own = blocks;
    own.sums = direct ? nullptr : sums + i * sums_size;
    if (plan == MatmulPlan::gemm_few_rows) {
      few_rows(op, gemm, own, part(out, i, threads, 12), part(out, i + 1, threads, 12));
    } else if (plan == MatmulPlan::gemm_few_columns) {
      few_columns(op, gemm, own, part(rows, i, threads, 32), part(rows, i + 1, threads, 32));
    } else if (plan == MatmulPlan::gemm_rows) {
      many_rows(op, gemm, own, part(rows, i, threads, 12), part(rows, i + 1, threads, 12), 0, out);
    } else {
      many_rows(op, gemm, own, 0, rows, part(out, i, threads, 32), part(out, i + 1, threads, 32));
    }
  });
}

// Whether only x W^T is asked for.
bool plain(const Matmul& op) { return !op.transpose_x && !op.transpose_weight && !op.accumulate; }

}  // namespace

bool can_run(const Matmul& op, MatmulPlan plan) {
  switch (plan) {
    case MatmulPlan::gemv:
      return plain(op) && detail::ChannelRows(op.x).count() <= Gemv::max_rows;
    case MatmulPlan::gemm_few_rows:
      return plain(op) && depth_of(op) > 0;
    case MatmulPlan::gemm_few_columns:
      return depth_of(op) > 0;
    default:
      return true;
  }
}

MatmulPlan plan(const Matmul& op) {
  if (can_run(op, MatmulPlan::gemv)) return MatmulPlan::gemv;
  const std::int64_t rows = detail::ChannelRows(op.y).count();
  if (rows <= most_few_rows && can_run(op, MatmulPlan::gemm_few_rows))
    return MatmulPlan::gemm_few_rows;
  const std::int64_t out = op.y.shape().back();
  if (out <= most_few_columns && rows > out && can_run(op, MatmulPlan::gemm_few_columns))
    return MatmulPlan::gemm_few_columns;
  return out >= rows ? MatmulPlan::gemm_columns : MatmulPlan::gemm_rows;
}

Words words_of(const Matmul& op) {
  return words_of(Factor(op.x, op.transpose_x), Factor(op.weight, op.transpose_weight));
}

bool can_run(const Matmul& op, Words words) {
  return can_multiply(Factor(op.x, op.transpose_x), Factor(op.weight, op.transpose_weight), words);
}

void run(const Matmul& op, Stream& stream, MatmulPlan plan, Words words) {
  if (op.y.count() == 0) return;
  if (plan == MatmulPlan::gemv) return gemv(op, stream);
  gemm(op, stream, plan, words);
}

void run(const Matmul& op, Stream& stream) { run(op, stream, plan(op), words_of(op)); }

}  // namespace mamba::host
