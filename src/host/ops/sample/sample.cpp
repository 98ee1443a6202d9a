// Picking tokens. Nothing is sorted: top_k and top_p are each a cutoff among the logits, found by
// summing counts or probabilities in buckets of the logits' bits, and the draw walks what is left
// in the order of ids.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "host/ops/sample/sample.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per target

#include <cmath>

#include "host/ops/storage-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mamba::host::HWY_NAMESPACE {

// to = the logits with the penalty applied where seen (which may be nullptr), NaN as -inf. Returns
// the largest.
float adjust(const float* logits, const std::int32_t* seen, float penalty, float* to,
             std::size_t count) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const std::size_t lanes = hn::Lanes(d);
  const F32Vec lowest = hn::Set(d, -HUGE_VALF);
  const F32Vec penalties = hn::Set(d, penalty);
  F32Vec largest = lowest;
  for (std::size_t i = 0; i < count; i += lanes) {
    const std::size_t part = count - i < lanes ? count - i : lanes;
    F32Vec v = part == lanes ? load(logits + i) : load_part(logits + i, part);
    if (seen != nullptr) {
      HWY_ALIGN std::int32_t rest[max_lanes] = {};
      if (part < lanes) std::memcpy(rest, seen + i, part * sizeof(*seen));
      const auto marks = part == lanes ? hn::LoadU(di, seen + i) : hn::Load(di, rest);
      const F32Vec punished =
          hn::IfThenElse(hn::Gt(v, hn::Zero(d)), hn::Div(v, penalties), hn::Mul(v, penalties));
      v = hn::IfThenElse(hn::RebindMask(d, hn::Eq(marks, hn::Zero(di))), v, punished);
    }
    v = hn::IfThenElse(hn::IsNaN(v), lowest, v);
    if (part == lanes) {
      store(v, to + i);
    } else {  // the other lanes are zeros that the row does not have
      store_part(v, to + i, part);
      v = hn::IfThenElse(hn::FirstN(d, part), v, lowest);
    }
    largest = hn::Max(largest, v);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

}  // namespace mamba::host::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "detail/backend.hpp"
#include "detail/philox.hpp"
#include "detail/stream_access.hpp"

namespace mamba::host {

HWY_EXPORT(adjust);

namespace {

// Unsigned integers in the order of the floats; -0 and 0 are one.
std::uint32_t ordered(float value) {
  value += 0.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

constexpr std::int64_t buckets = 2048;

// The tokens still possible in one row, lowest id first.
struct Candidates {
  std::int32_t* ids;
  std::uint32_t* keys;  // ordered logits
  float* weights;       // exp((logit - largest) / temperature)
  double* sums;         // [buckets]
  std::int64_t count;

  template <class Condition>
  void keep(Condition condition) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      if (!condition(i)) continue;
      ids[kept] = ids[i];
      keys[kept] = keys[i];
      weights[kept] = weights[i];
      ++kept;
    }
    count = kept;
  }

  // Keeps the fewest largest whose masses sum to at least `target`, and at least one; mass(i) is
  // what candidate i counts. The key of the last one kept is found from its upper bits down, 11, 11
  // and 10: sum the masses by those bits, go down from the top to the bucket in which the sum
  // passes the target, and look with the next bits into that bucket alone.
  template <class Mass>
  void keep_largest(double target, Mass mass) {
    target = std::max(target, std::numeric_limits<double>::min());
    double above = 0;          // the mass beyond the current bucket, always below the target
    std::uint64_t prefix = 0;  // the upper bits found so far
    for (const auto& [shift, bits] : {std::pair(21, 11), {10, 11}, {0, 10}}) {
      const std::uint32_t last = (1u << bits) - 1;
      std::fill(sums, sums + last + 1, 0.0);
      for (std::int64_t i = 0; i < count; ++i) {
        if (std::uint64_t{keys[i]} >> (shift + bits) == prefix) {
          sums[keys[i] >> shift & last] += mass(i);
        }
      }
      std::uint32_t b = last;
      while (b > 0 && above + sums[b] < target) above += sums[b--];
      prefix = prefix << bits | b;
    }
    keep([&](std::int64_t i) {
      if (keys[i] != prefix) return keys[i] > prefix;
      if (above >= target) return false;  // enough of the equals
      above += mass(i);
      return true;
    });
  }

  double total() const {
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum += static_cast<double>(weights[i]);
    return sum;
  }

  std::int32_t draw(double uniform) const {
    const double target = uniform * total();
    double sum = 0;
    std::int32_t id = ids[0];
    for (std::int64_t i = 0; i < count && sum <= target; ++i) {
      if (weights[i] == 0) continue;  // rounding must not end on an impossible token
      sum += static_cast<double>(weights[i]);
      id = ids[i];
    }
    return id;
  }
};

// The options of row b.
struct Choice {
  float temperature, top_p, min_p, penalty;
  std::int64_t top_k;

  Choice(const Sample& op, std::int64_t b) {
    const auto value = [b](const ConstTensorView& values, float otherwise) {
      return values ? values.data<float>()[b] : otherwise;
    };
    temperature = value(op.temperatures, op.temperature);
    top_p = value(op.top_ps, op.top_p);
    min_p = value(op.min_ps, op.min_p);
    penalty = value(op.repetition_penalties, op.repetition_penalty);
    top_k = op.top_ks ? op.top_ks.data<std::int32_t>()[b] : op.top_k;
  }
};

std::int32_t sample(const Choice& op, const float* logits, float largest, Candidates left,
                    double uniform) {
  for (std::int64_t i = 0; i < left.count; ++i) {
    left.ids[i] = static_cast<std::int32_t>(i);
    left.keys[i] = ordered(logits[i]);
  }
  if (op.top_k > 0 && op.top_k < left.count) {
    left.keep_largest(static_cast<double>(op.top_k), [](std::int64_t) { return 1.0; });
  }
  for (std::int64_t i = 0; i < left.count; ++i) {
    left.weights[i] = std::exp((logits[left.ids[i]] - largest) / op.temperature);
  }
  if (op.top_p < 1) {
    left.keep_largest(static_cast<double>(op.top_p) * left.total(),
                      [&](std::int64_t i) { return static_cast<double>(left.weights[i]); });
  }
  if (op.min_p > 0) {  // the largest has weight 1
    left.keep([&](std::int64_t i) { return left.weights[i] >= op.min_p; });
  }
  return left.draw(uniform);
}

// Draw number draws[b] of the seed: the key is seed[b] (low, high), the counter (draws[b], 0, 0,
// 0).
double next_uniform(const Sample& op, std::int64_t b) {
  const auto* seed = op.seed.data<std::int32_t>() + b * op.seed.row_pitch();
  const std::uint64_t key = std::uint64_t{static_cast<std::uint32_t>(seed[1])} << 32 |
                            static_cast<std::uint32_t>(seed[0]);
  std::int32_t& draws = op.draws.data<std::int32_t>()[b];
  const auto draw = static_cast<std::uint32_t>(draws);
  draws = static_cast<std::int32_t>(draw + 1);
  return detail::uniform(detail::philox(key, {draw, 0, 0, 0}));
}

// Which row of the operands the i-th is that is worked on.
std::int64_t row_of(const Sample& op, std::int64_t i) {
  return op.rows ? op.rows.data<std::int32_t>()[i] : i;
}

void check_largest(const Sample& op, const float* largest, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(largest[i])) {
      throw ArgumentError("sample", "logits",
                          fmt::format("a finite largest value in row {}", row_of(op, i)),
                          fmt::format("{}", largest[i]));
    }
  }
}

}  // namespace

void run(const Sample& op, Stream& stream) {
  const std::int64_t count = op.rows ? op.rows.dim(0) : op.logits.dim(0);
  const std::int64_t vocab = op.logits.dim(1);
  const int threads = static_cast<int>(std::clamp<std::int64_t>(count, 1, stream.threads()));
  Scratch scratch(stream);
  float* logits = scratch.take({count, vocab}, DType::f32).data<float>();
  float* largest = scratch.take({count}, DType::f32).data<float>();
  auto* ids = scratch.take({threads, vocab}, DType::i32).data<std::int32_t>();
  // Scratch is raw memory: unsigned keys and double sums take the room of as many 32-bit words.
  auto* keys = static_cast<std::uint32_t*>(scratch.take({threads, vocab}, DType::i32).data());
  float* weights = scratch.take({threads, vocab}, DType::f32).data<float>();
  auto* sums = static_cast<double*>(scratch.take({threads, 2 * buckets}, DType::f32).data());

  detail::Team& team = StreamAccess::team(stream);
  team.run(threads, [&](int thread) {
    for (std::int64_t i = thread; i < count; i += threads) {
      const std::int64_t b = row_of(op, i);
      const float penalty = Choice(op, b).penalty;
      const auto* seen =
          penalty != 1 ? op.seen.data<std::int32_t>() + b * op.seen.row_pitch() : nullptr;
      largest[i] = HWY_DYNAMIC_DISPATCH(adjust)(op.logits.data<float>() + b * op.logits.row_pitch(),
                                                seen, penalty, logits + i * vocab,
                                                static_cast<std::size_t>(vocab));
    }
  });
  check_largest(op, largest, count);
  team.run(threads, [&](int thread) {
    const Candidates all{ids + thread * vocab, keys + thread * vocab, weights + thread * vocab,
                         sums + thread * buckets, vocab};
    for (std::int64_t i = thread; i < count; i += threads) {
      const std::int64_t b = row_of(op, i);
      const Choice choice(op, b);
      const float* row = logits + i * vocab;
      const std::int32_t id =
          choice.temperature > 0
              ? sample(choice, row, largest[i], all, next_uniform(op, b))
              : static_cast<std::int32_t>(std::find(row, row + vocab, largest[i]) - row);
      op.ids.data<std::int32_t>()[b] = id;
      if (!op.seen) continue;
      std::int32_t& seen = op.seen.data<std::int32_t>()[b * op.seen.row_pitch() + id];
      if (seen >= 0) ++seen;
    }
  });
}

}  // namespace mamba::host
#endif  // HWY_ONCE
