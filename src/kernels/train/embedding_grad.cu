// EmbeddingGrad: the tokens are sorted by their id, those of one id staying in order, and each run
// of equal ids is summed by the threads of its columns, first to last.
#include <cub/device/device_radix_sort.cuh>

#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/rows.cuh"
#include "kernels/gpu/vec.cuh"

namespace mamba::cuda {

namespace {

constexpr const char* where = "embedding_grad";
constexpr int block_threads = 128;
constexpr int block_warps = block_threads / 32;

// keys[i] = the id of token i, or vocab if it is out of range; tokens[i] = i
__global__ void __launch_bounds__(block_threads)
    token_keys_kernel(const std::int32_t* ids, const RowPitches id_rows, std::int32_t count,
                      std::int64_t vocab, std::int32_t* keys, std::int32_t* tokens, int* bad_id) {
  const auto i = static_cast<std::int32_t>(blockIdx.x * block_threads + threadIdx.x);
  if (i >= count) return;
  const std::int32_t id = ids[id_rows.offset(i)];
  const bool bad = id < 0 || id >= vocab;
  if (bad) *bad_id = 1;
  keys[i] = bad ? static_cast<std::int32_t>(vocab) : id;
  tokens[i] = i;
}

template <class T>
struct Runs {
  const std::int32_t *keys, *tokens;  // sorted by key
  std::int32_t count;
  const T* dy;
  RowPitches dy_rows;
  float* dtable;
  std::int64_t vocab, pitch, width;
  bool accumulate;
};

// One past the last of the keys equal to keys[first].
__device__ std::int32_t run_end(const std::int32_t* keys, std::int32_t first, std::int32_t count) {
  std::int32_t inside = first, outside = count;
  while (outside - inside > 1) {
    const std::int32_t middle = inside + (outside - inside) / 2;
    if (keys[middle] == keys[first]) {
      inside = middle;
    } else {
      outside = middle;
    }
  }
  return outside;
}

// A warp for each token and 32 V columns: that of the first token of a run sums it.
template <int V, class T>
__global__ void __launch_bounds__(block_threads, 8) sum_runs_kernel(const Runs<T> op) {
  const std::int64_t across = (op.width + 32 * V - 1) / (32 * V);
  const std::int64_t warp = std::int64_t{blockIdx.x} * block_warps + threadIdx.x / 32;
  const auto first = static_cast<std::int32_t>(min(warp / across, std::int64_t{op.count}));
  const std::int64_t column = warp % across * (32 * V) + threadIdx.x % 32 * V;
  if (first >= op.count || column >= op.width) return;
  const std::int32_t id = op.keys[first];
  if (id >= op.vocab || (first > 0 && op.keys[first - 1] == id)) return;
  float* to = op.dtable + id * op.pitch + column;
  float sums[V] = {};
  if (op.accumulate) load_floats<V>(to, sums);
  const std::int32_t end = run_end(op.keys, first, op.count);
  // Loads in flight: a run may be thousands of tokens long, and one warp sums it.
#pragma unroll 8
  for (std::int32_t i = first; i < end; ++i) {
    float values[V];
    load_floats<V>(op.dy + op.dy_rows.offset(op.tokens[i]) + column, values);
#pragma unroll
    for (int v = 0; v < V; ++v) sums[v] += values[v];
  }
  store_floats<V>(to, sums);
}

template <int V, class T>
void sum_runs(const Runs<T>& runs, Stream& stream) {
  const std::int64_t warps = runs.count * divide_up(runs.width, 32 * V);
  const auto blocks = static_cast<unsigned>(divide_up(warps, block_warps));
  launch(sum_runs_kernel<V, T>, blocks, block_threads, 0, stream, where, runs);
}

int bits_of(std::int64_t largest) {
  int bits = 0;
  while (largest >> bits != 0) ++bits;
  return bits;
}

}  // namespace

void run(const EmbeddingGrad& op, Stream& stream) {
  if (op.dtable.count() == 0) return;
  const OnDevice current(stream.device(), where);
  if (!op.accumulate) cuda::zero(op.dtable, stream);
  const auto count = static_cast<std::int32_t>(op.ids.count());
  if (count == 0) return;
  const std::int64_t vocab = op.dtable.dim(0);
  Scratch scratch(stream);
  const auto list = [&] { return scratch.take({count}, DType::i32).data<std::int32_t>(); };
  std::int32_t *keys = list(), *sorted_keys = list(), *tokens = list(), *sorted_tokens = list();
  const auto blocks = static_cast<unsigned>(divide_up(count, block_threads));
  launch(token_keys_kernel, blocks, block_threads, 0, stream, where, op.ids.data<std::int32_t>(),
         RowPitches::of_elements(op.ids), count, vocab, keys, tokens,
         StreamAccess::flag(stream, BadValue::token_id));
  std::size_t bytes = 0;
  const auto sort = [&](void* memory) {  // stable: the tokens of one id stay in order
    check(cub::DeviceRadixSort::SortPairs(memory, bytes, keys, sorted_keys, tokens, sorted_tokens,
                                          count, 0, bits_of(vocab), handle(stream)),
          where);
  };
  sort(nullptr);
  sort(scratch.take({static_cast<std::int64_t>((bytes + 3) / 4) + 1}, DType::f32).data());
  detail::visit(op.dy.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr auto size = static_cast<std::int64_t>(sizeof(T));
    constexpr int V = 4;
    const Runs<T> runs{sorted_keys,     sorted_tokens,         count,
                       op.dy.data<T>(), RowPitches(op.dy),     op.dtable.data<float>(),
                       vocab,           op.dtable.row_pitch(), op.dtable.dim(1),
                       op.accumulate};
    const bool vectors = runs.width % V == 0 && runs.dy_rows.aligned(runs.dy, size, V * size) &&
                         is_aligned(runs.dtable, runs.pitch * 4, V * 4);
    vectors ? sum_runs<V>(runs, stream) : sum_runs<1>(runs, stream);
  });
}

}  // namespace mamba::cuda
