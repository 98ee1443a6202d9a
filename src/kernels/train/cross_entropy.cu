// CrossEntropy: a row of logits is read once for its softmax and once more, from the cache, for its
// gradient.
#include "detail/stream_access.hpp"
#include "detail/visit.hpp"
#include "kernels/gpu/launch.cuh"
#include "kernels/gpu/vec.cuh"
#include "kernels/train/softmax_row.cuh"

namespace mamba::cuda {

namespace {

template <class L, class D>
struct Losses {
  const L* logits;
  RowPitches logits_rows;
  const std::int32_t* targets;
  float* loss;
  D* dlogits;  // may be nullptr; may be the same memory as logits
  RowPitches dlogits_rows;
  std::int64_t rows, vocab;
  float scale;
  int lanes;
  int* bad_target;
};

template <int V, class L, class D>
__global__ void __launch_bounds__(row_block_largest) cross_entropy_kernel(const Losses<L, D> op) {
  const int lane = static_cast<int>(threadIdx.x) % op.lanes;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * (blockDim.x / op.lanes) + static_cast<int>(threadIdx.x) / op.lanes;
  const bool inside = row < op.rows;  // threads outside take part in the sums
  const L* logits = op.logits + (inside ? op.logits_rows.offset(row) : 0);
  const std::int64_t target = inside ? op.targets[row] : -1;
  const bool bad = target >= op.vocab;
  const std::int64_t first = std::int64_t{lane} * V;
  const std::int64_t stride = std::int64_t{op.lanes} * V;
  SoftmaxSum softmax;
  if (target >= 0 && !bad) {
#pragma unroll 2
    for (std::int64_t c = first; c < op.vocab; c += stride) {
      float values[V];
      load_floats<V>(logits + c, values);
      softmax.add(values);
    }
  }
  // The logit of the target is read before anything is written over it.
  const float chosen = target >= 0 && !bad ? to_float(logits[target]) : 0;
  __syncwarp();
  softmax = combine_over_row(softmax, op.lanes);
  if (!inside) return;
  const float of_bad = nanf("");
  if (lane == 0) {
    if (bad) *op.bad_target = 1;
    op.loss[row] = bad ? of_bad : target < 0 ? 0 : -softmax.log_p(chosen);
  }
  if (op.dlogits == nullptr) return;
  D* dlogits = op.dlogits + op.dlogits_rows.offset(row);
  const float share = op.scale / softmax.sum;
  for (std::int64_t c = first; c < op.vocab; c += stride) {
    float values[V];
    if (target < 0 || bad) {
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = bad ? of_bad : 0;
    } else {
      load_floats<V>(logits + c, values);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = expf(values[v] - softmax.largest) * share - (c + v == target ? op.scale : 0);
      }
    }
    store_floats<V>(dlogits + c, values);
  }
}

template <int V, class L, class D>
void launch_rows(Losses<L, D> losses, Stream& stream) {
  const RowBlocks spread(losses.vocab, V, 4);
  losses.lanes = spread.lanes;
  const auto blocks = static_cast<unsigned>(divide_up(losses.rows, spread.rows()));
  launch(cross_entropy_kernel<V, L, D>, blocks, spread.threads, 0, stream, "cross_entropy", losses);
}

template <class L, class D>
void run_typed(const CrossEntropy& op, Stream& stream) {
  Losses<L, D> losses{};
  losses.logits = op.logits.data<L>();
  losses.logits_rows = RowPitches(op.logits);
  losses.targets = op.targets.data<std::int32_t>();
  losses.loss = op.loss.data<float>();
  losses.dlogits = op.dlogits ? op.dlogits.data<D>() : nullptr;
  losses.dlogits_rows = RowPitches(op.dlogits);
  losses.rows = op.loss.count();
  losses.vocab = op.logits.shape().back();
  losses.scale = op.scale;
  losses.bad_target = StreamAccess::flag(stream, BadValue::target);
  constexpr int V = 16 / static_cast<int>(std::max(sizeof(L), sizeof(D)));
  constexpr auto l_size = static_cast<std::int64_t>(sizeof(L));
  constexpr auto d_size = static_cast<std::int64_t>(sizeof(D));
  const bool vectors = losses.vocab % V == 0 &&
                       losses.logits_rows.aligned(losses.logits, l_size, V * l_size) &&
                       losses.dlogits_rows.aligned(losses.dlogits, d_size, V * d_size);
  vectors ? launch_rows<V>(losses, stream) : launch_rows<1>(losses, stream);
}

}  // namespace

void run(const CrossEntropy& op, Stream& stream) {
  const OnDevice current(stream.device(), "cross_entropy");
  detail::visit(op.logits.dtype(), [&](auto logits_type) {
    using L = typename decltype(logits_type)::type;
    if (!op.dlogits) return run_typed<L, L>(op, stream);
    detail::visit(op.dlogits.dtype(),
                  [&](auto type) { run_typed<L, typename decltype(type)::type>(op, stream); });
  });
}

}  // namespace mamba::cuda
