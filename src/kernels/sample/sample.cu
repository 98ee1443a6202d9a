// Picking tokens: one block per row, and as on the CPU nothing is sorted. top_k and top_p are each
// a cut among the logits, found digit by digit of their bits; the draw looks for the id at which
// the running sum passes a random part of the whole, through ever smaller parts of the row.
//
// Measured on an H200, 50280 logits, 1 to 64 rows: the largest 5 us, a draw 21, with top_k 50, with
// top_p 91. A row is bound by the instructions of its one multiprocessor.
#include <cfloat>

#include "detail/philox.hpp"
#include "detail/stream_access.hpp"
#include "kernels/gpu/chained.cuh"
#include "kernels/gpu/vec.cuh"
#include "kernels/sample/sample_row.cuh"

namespace mamba::cuda {

namespace {

using sampling::Cut;
using sampling::Row;
using sampling::Shared;

struct Options {
  const float* logits;  // [batch, vocab]
  std::int64_t logits_pitch;
  const std::int32_t* seed;  // [batch, 2]
  std::int64_t seed_pitch;
  std::int32_t* draws;  // [batch]
  std::int32_t* seen;   // [batch, vocab]; may be nullptr
  std::int64_t seen_pitch;
  std::int32_t* ids;         // [batch]
  const std::int32_t* rows;  // of the batch, one for each block; nullptr: all
  std::int64_t batch;
  int vocab;
  bool vectors;
  // One value for all rows, or where there are any, [batch] of them.
  float temperature, top_p, min_p, penalty;
  std::int64_t top_k;
  const float *temperatures, *top_ps, *min_ps, *penalties;
  const std::int32_t* top_ks;
  float unit;  // the fixed-point mass of probability weight 1
  int* bad_logits;
  int* bad_row;
};

// The options of a row. Values from device memory, which nobody has checked, must not lead a search
// to where nothing is.
struct Choice {
  float temperature, top_p, min_p, penalty;
  std::int64_t top_k;

  __device__ __forceinline__ Choice(const Options& op, std::int64_t b)
      : temperature(op.temperatures != nullptr ? op.temperatures[b] : op.temperature),
        top_p(op.top_ps != nullptr ? fmaxf(op.top_ps[b], 0) : op.top_p),
        min_p(op.min_ps != nullptr ? fminf(fmaxf(op.min_ps[b], 0), 1) : op.min_p),
        penalty(op.penalties != nullptr ? op.penalties[b] : op.penalty),
        top_k(op.top_ks != nullptr ? op.top_ks[b] : op.top_k) {}
};

// In [0, 1): from Philox keyed by row b's seed at counter (draws, 0, 0, 0).
__device__ double uniform(const Options& op, std::int64_t b) {
  const auto low = static_cast<std::uint32_t>(op.seed[b * op.seed_pitch]);
  const auto high = static_cast<std::uint32_t>(op.seed[b * op.seed_pitch + 1]);
  const auto draws = static_cast<std::uint32_t>(op.draws[b]);
  return detail::uniform(detail::philox(std::uint64_t{high} << 32 | low, {draws, 0, 0, 0}));
}

// exp((logit - largest) / temperature) in fixed point; weights below `least` count nothing. The
// product with 1 / temperature is one rounding from the CPU's quotient; a division for each logit
// takes longer than all the rest.
struct Weight {
  float largest, per_temperature, unit, least;
  __device__ __forceinline__ std::uint64_t operator()(int, float logit) const {
    const float weight = expf((logit - largest) * per_temperature);
    return weight >= least ? __float2ull_rn(weight * unit) : 0;
  }
};

__device__ int draw(Shared& shared, const Row& row, const Options& options, const Choice& op,
                    std::int64_t b, float largest) {
  Cut cut;
  if (op.top_k > 0 && op.top_k < row.count) {
    const auto one = [](int, float) { return std::uint64_t{1}; };
    cut = sampling::find_cut(shared, row, one, cut, static_cast<std::uint64_t>(op.top_k));
  }
  Weight weight{largest, fminf(1 / op.temperature, FLT_MAX), options.unit, 0};
  const auto kept = [&](int i, float v) {
    return cut.keeps(sampling::ordered(v), i) ? weight(i, v) : 0;
  };
  if (op.top_p < 1) {
    const std::uint64_t all = sampling::total(shared, row, kept);
    const double wanted = ceil(static_cast<double>(op.top_p) * static_cast<double>(all));
    const auto target = max(std::uint64_t{1}, static_cast<std::uint64_t>(wanted));
    cut = sampling::find_cut(shared, row, weight, cut, min(target, all));
  }
  weight.least = op.min_p;  // the largest has weight 1
  return sampling::find_id(shared, row, kept, [&](std::uint64_t all) {
    const auto target = static_cast<std::uint64_t>(uniform(options, b) * static_cast<double>(all));
    return min(target, all - 1);
  });
}

__global__ void __launch_bounds__(sampling::block_threads) sample_kernel(const Options op) {
  __shared__ Shared shared;
  let_next_begin();
  wait_for_previous();
  const std::int64_t b = op.rows != nullptr ? op.rows[blockIdx.x] : blockIdx.x;
  if (b < 0 || b >= op.batch) {
    if (threadIdx.x == 0) *op.bad_row = 1;
    return;
  }
  const Choice choice(op, b);
  std::int32_t* seen = op.seen == nullptr ? nullptr : op.seen + b * op.seen_pitch;
  const Row row{op.logits + b * op.logits_pitch, choice.penalty != 1 ? seen : nullptr,
                choice.penalty, op.vocab, op.vectors};
  const std::uint64_t found = sampling::find_largest(shared, row);
  const float largest = sampling::from_ordered(static_cast<std::uint32_t>(found >> 32));
  if (!(fabsf(largest) <= FLT_MAX)) {
    if (threadIdx.x == 0) {
      op.ids[b] = -1;
      *op.bad_logits = 1;
    }
    return;
  }
  int id = static_cast<int>(~static_cast<std::uint32_t>(found));
  if (choice.temperature > 0) {
    id = draw(shared, row, op, choice, b, largest);
    __syncthreads();  // everyone has read its draw
    if (threadIdx.x == 0) {
      op.draws[b] = static_cast<std::int32_t>(static_cast<std::uint32_t>(op.draws[b]) + 1);
    }
  }
  if (threadIdx.x == 0) {
    op.ids[b] = id;
    if (seen != nullptr && seen[id] >= 0) ++seen[id];
  }
}

// A power of two whose product with the number of candidates is below 2^63.
float unit_mass(std::int64_t candidates) {
  int bits = 62;
  while (bits > 0 && candidates >> (63 - bits) != 0) --bits;
  return static_cast<float>(std::uint64_t{1} << bits);
}

}  // namespace

void run(const Sample& op, Stream& stream) {
  const std::int64_t count = op.rows ? op.rows.dim(0) : op.logits.dim(0);
  if (count == 0) return;
  const OnDevice current(stream.device(), "sample");
  Options options{};
  options.logits = op.logits.data<float>();
  options.logits_pitch = op.logits.row_pitch();
  if (op.seed) {
    options.seed = op.seed.data<std::int32_t>();
    options.seed_pitch = op.seed.row_pitch();
  }
  if (op.draws) options.draws = op.draws.data<std::int32_t>();
  if (op.seen) {
    options.seen = op.seen.data<std::int32_t>();
    options.seen_pitch = op.seen.row_pitch();
  }
  options.ids = op.ids.data<std::int32_t>();
  if (op.rows) options.rows = op.rows.data<std::int32_t>();
  options.batch = op.logits.dim(0);
  const auto values = [](const ConstTensorView& view) {
    return view ? view.data<float>() : nullptr;
  };
  options.temperatures = values(op.temperatures);
  options.top_ps = values(op.top_ps);
  options.min_ps = values(op.min_ps);
  options.penalties = values(op.repetition_penalties);
  if (op.top_ks) options.top_ks = op.top_ks.data<std::int32_t>();
  options.vocab = static_cast<int>(op.logits.dim(1));
  options.vectors = is_aligned(options.logits, options.logits_pitch * 4, 16) &&
                    is_aligned(options.seen, options.seen_pitch * 4, 16);
  options.temperature = op.temperature;
  options.top_p = op.top_p;
  options.min_p = op.min_p;
  options.penalty = op.repetition_penalty;
  options.top_k = op.top_k;
  options.unit = unit_mass(options.vocab);
  options.bad_logits = StreamAccess::flag(stream, BadValue::logits);
  options.bad_row = StreamAccess::flag(stream, BadValue::sampled_row);
  launch_chained(sample_kernel, static_cast<unsigned>(count), sampling::block_threads, 0, stream,
                 "sample", options);
}

}  // namespace mamba::cuda
