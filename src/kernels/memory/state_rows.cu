// CopyRows and ZeroRows: whole rows moved as the widest words that their addresses allow. What the
// elements are does not matter here.
#include <algorithm>

#include "detail/stream_access.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/rows.cuh"

namespace mamba::cuda {

namespace {

constexpr int block_threads = 256;
constexpr int words_per_thread = 4;  // of one row: 16 KB per block and visit

// How the words of `rows` rows are cut into pieces, one for each visit of a block: a part of one
// long row, or several short rows.
struct Pieces {
  std::int64_t rows, words;  // words in a row
  int lanes;                 // threads on one row
  std::int64_t per_row;      // pieces that share a row

  Pieces(std::int64_t row_count, std::int64_t row_words)
      : rows(row_count),
        words(row_words),
        lanes(lanes_per_row(divide_up(row_words, words_per_thread), block_threads)),
        per_row(divide_up(row_words, std::int64_t{lanes} * words_per_thread)) {}

  unsigned blocks() const {  // further pieces are taken in turn
    const std::int64_t count = divide_up(rows, block_threads / lanes) * per_row;
    return static_cast<unsigned>(std::min<std::int64_t>(count, 1 << 20));
  }
};

// f(row, first word, one past the last, stride) for each part of a row that falls to this thread.
template <class F>
__device__ __forceinline__ void for_each_part(const Pieces& p, const F& f) {
  const int rows_per_piece = block_threads / p.lanes;
  const int lane = static_cast<int>(threadIdx.x) % p.lanes;
  const std::int64_t count = (p.rows + rows_per_piece - 1) / rows_per_piece * p.per_row;
  const std::int64_t part_words = std::int64_t{p.lanes} * words_per_thread;
  for (std::int64_t piece = blockIdx.x; piece < count; piece += gridDim.x) {
    const std::int64_t row =
        piece / p.per_row * rows_per_piece + static_cast<int>(threadIdx.x) / p.lanes;
    if (row >= p.rows) continue;
    const std::int64_t first = piece % p.per_row * part_words;
    f(row, first + lane, min(first + part_words, p.words), p.lanes);
  }
}

template <class Word>
struct Copy {
  const Word* from;
  const std::int32_t* from_rows;  // may be nullptr
  std::int64_t from_count;
  Word* to;
  const std::int32_t* to_rows;  // may be nullptr
  std::int64_t to_count;
  int* bad_row;
};

template <class Word>
__device__ Word all_bits_set() {
  Word word;
  memset(&word, 0xff, sizeof(word));
  return word;
}

template <class Word>
__global__ void __launch_bounds__(block_threads)
    copy_rows_kernel(const Copy<Word> copy, const Pieces pieces) {
  for_each_part(pieces, [&](std::int64_t i, std::int64_t w, std::int64_t last, int stride) {
    const std::int64_t source = copy.from_rows != nullptr ? copy.from_rows[i] : i;
    const std::int64_t target = copy.to_rows != nullptr ? copy.to_rows[i] : i;
    const bool bad_source = source < 0 || source >= copy.from_count;
    const bool bad_target = target < 0 || target >= copy.to_count;
    if (bad_source || bad_target) *copy.bad_row = 1;
    if (bad_target) return;
    const Word* from = copy.from + (bad_source ? 0 : source * pieces.words);
    Word* to = copy.to + target * pieces.words;
    if (bad_source) {  // all bits set is NaN in every float type, and -1 in i32
      for (; w < last; w += stride) to[w] = all_bits_set<Word>();
      return;
    }
#pragma unroll words_per_thread
    for (; w < last; w += stride) to[w] = from[w];
  });
}

template <class Word>
struct Zero {
  const std::int32_t* mask;  // or
  const std::int32_t *read, *write;
  Word* view;
  std::int64_t inner;  // contiguous words
  std::int64_t row_pitch, step_pitch;
};

template <class Word>
__global__ void __launch_bounds__(block_threads)
    zero_rows_kernel(const Zero<Word> zero, const Pieces pieces) {
  for_each_part(pieces, [&](std::int64_t b, std::int64_t w, std::int64_t last, int stride) {
    const bool chosen =
        zero.mask != nullptr ? zero.mask[b] != 0 : zero.read[b] < 0 && zero.write[b] < 0;
    if (!chosen) return;
    Word* row = zero.view + b * zero.row_pitch;
    if (zero.inner == pieces.words) {
      for (; w < last; w += stride) row[w] = Word{};
    } else {
      for (; w < last; w += stride) {
        row[w / zero.inner * zero.step_pitch + w % zero.inner] = Word{};
      }
    }
  });
}

// f(word) with the widest of 16, 4 and 2 bytes that divides all of `numbers` (sizes and addresses,
// or-ed together).
template <class F>
void visit_word(std::uint64_t numbers, const F& f) {
  if (numbers % 16 == 0) return f(uint4{});
  if (numbers % 4 == 0) return f(std::uint32_t{});
  f(std::uint16_t{});
}

std::uint64_t address(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

}  // namespace

void run(const CopyRows& op, Stream& stream) {
  const std::int64_t n = op.from_rows ? op.from_rows.dim(0)
                         : op.to_rows ? op.to_rows.dim(0)
                                      : op.from.dim(0);
  if (n == 0) return;
  const OnDevice current(stream.device(), "copy_rows");
  const std::int64_t bytes = op.from.count() / op.from.dim(0) * size_of(op.from.dtype());
  const std::uint64_t numbers =
      address(op.from.data()) | address(op.to.data()) | static_cast<std::uint64_t>(bytes);
  visit_word(numbers, [&](auto word) {
    using Word = decltype(word);
    Copy<Word> copy{};
    copy.from = static_cast<const Word*>(op.from.data());
    copy.from_rows = op.from_rows ? op.from_rows.data<std::int32_t>() : nullptr;
    copy.from_count = op.from.dim(0);
    copy.to = static_cast<Word*>(op.to.data());
    copy.to_rows = op.to_rows ? op.to_rows.data<std::int32_t>() : nullptr;
    copy.to_count = op.to.dim(0);
    copy.bad_row = StreamAccess::flag(stream, BadValue::copied_row);
    const Pieces pieces(n, bytes / static_cast<std::int64_t>(sizeof(Word)));
    launch(copy_rows_kernel<Word>, pieces.blocks(), block_threads, 0, stream, "copy_rows", copy,
           pieces);
  });
}

void run(const ZeroRows& op, Stream& stream) {
  const OnDevice current(stream.device(), "zero_rows");
  const ConstTensorView& view = op.view;
  const std::int64_t size = size_of(view.dtype());
  const std::int64_t row = view.count() / view.dim(0);  // elements
  const std::int64_t steps = view.rank() >= 3 ? view.dim(1) : 1;
  const bool one_run = steps == 1 || view.step_pitch() == row / steps;
  const std::int64_t inner = one_run ? row : row / steps;
  const std::int64_t step_pitch = one_run ? row : view.step_pitch();
  const std::uint64_t numbers =
      address(view.data()) |
      static_cast<std::uint64_t>(size * inner | size * step_pitch | size * view.row_pitch());
  visit_word(numbers, [&](auto word) {
    using Word = decltype(word);
    const auto words = [&](std::int64_t elements) {
      return elements * size / static_cast<std::int64_t>(sizeof(Word));
    };
    Zero<Word> zero{};
    zero.mask = op.mask ? op.mask.data<std::int32_t>() : nullptr;
    zero.read = op.mask ? nullptr : op.padding.read.data<std::int32_t>();
    zero.write = op.mask ? nullptr : op.padding.write.data<std::int32_t>();
    zero.view = static_cast<Word*>(op.view.data());
    zero.inner = words(inner);
    zero.row_pitch = words(view.row_pitch());
    zero.step_pitch = words(step_pitch);
    const Pieces pieces(view.dim(0), words(row));
    launch(zero_rows_kernel<Word>, pieces.blocks(), block_threads, 0, stream, "zero_rows", zero,
           pieces);
  });
}

}  // namespace mamba::cuda
