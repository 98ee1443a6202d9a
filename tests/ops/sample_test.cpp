#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include <mamba/ops.hpp>

#include "detail/philox.hpp"
#include "each.hpp"
#include "ops/dense_reference.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::each_backend;
using testing::expect_error;
using testing::Random;

const float inf = std::numeric_limits<float>::infinity();
const float nan = std::numeric_limits<float>::quiet_NaN();

std::vector<std::int32_t> integers(const Tensor& tensor) {
  const Tensor host = tensor.to(Device::cpu());
  const auto* data = host.data<std::int32_t>();
  return {data, data + host.count()};
}

// A Sample over `batch` rows of the same or different logits, with all its state on one device.
struct Sampler {
  Sample op;
  Tensor logits, seed, draws, seen, ids;
  Device device;

  Sampler(const std::vector<float>& values, std::int64_t batch, Device where) : device(where) {
    const auto vocab = static_cast<std::int64_t>(values.size()) / batch;
    logits = Tensor::from<float>(values, {batch, vocab}).to(device);
    Tensor seeds({batch, 2}, DType::i32);
    for (std::int64_t b = 0; b < batch; ++b) {
      seeds.data<std::int32_t>()[2 * b] = static_cast<std::int32_t>(b);
      seeds.data<std::int32_t>()[2 * b + 1] = 77;
    }
    seed = seeds.to(device);
    draws = Tensor::zeros({batch}, DType::i32, device);
    seen = Tensor::zeros({batch, vocab}, DType::i32, device);
    ids = Tensor::zeros({batch}, DType::i32, device);
    op.logits = logits;
    op.seed = seed;
    op.draws = draws;
    op.ids = ids;
  }
  std::vector<std::int32_t> next() {
    Stream& stream = default_stream(device);
    run(op, stream);
    stream.synchronize();
    return integers(ids);
  }
};

// Many rows of the same logits, each with its own seed: as many independent draws in one call.
std::vector<double> counts(const std::vector<float>& logits, std::int64_t draws, Device device,
                           const Sample& options) {
  std::vector<float> rows;
  for (std::int64_t i = 0; i < draws; ++i) rows.insert(rows.end(), logits.begin(), logits.end());
  Sampler sampler(rows, draws, device);
  sampler.op.temperature = options.temperature;
  sampler.op.top_k = options.top_k;
  sampler.op.top_p = options.top_p;
  sampler.op.min_p = options.min_p;
  std::vector<double> result(logits.size(), 0.0);
  for (const std::int32_t id : sampler.next()) ++result[static_cast<std::size_t>(id)];
  return result;
}

// Which tokens are ever drawn: with 400 draws a token of probability 0.05 is missed once in 10^9.
std::set<int> possible(const std::vector<float>& logits, Device device, const Sample& options) {
  const std::vector<double> seen = counts(logits, 400, device, options);
  std::set<int> ids;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] > 0) ids.insert(static_cast<int>(i));
  }
  return ids;
}

std::vector<float> logarithms(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST(Philox, KnownAnswers) {  // kat_vectors of Random123
  using detail::philox;
  using Words = detail::PhiloxWords;
  EXPECT_EQ(philox(0, {0, 0, 0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~std::uint64_t{0}, {~0u, ~0u, ~0u, ~0u}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0a4093822, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformUsesTheUpper53Bits) {
  EXPECT_EQ(detail::uniform({0, 0, 0, 0}), 0.0);
  EXPECT_EQ(detail::uniform({0, 2047, ~0u, ~0u}), 0.0);
  EXPECT_EQ(detail::uniform({0x80000000u, 0, 0, 0}), 0.5);
  EXPECT_EQ(detail::uniform({0, 2048, 0, 0}), 0x1p-53);
  EXPECT_EQ(detail::uniform({~0u, ~0u, 0, 0}), 1 - 0x1p-53);
}

TEST_EACH(Sample, GreedyTakesTheLargestAndTheLowestIdAmongEquals, Device device) {
  each_backend(device, [&] {
    for (const std::size_t vocab : {1u, 2u, 15u, 17u, 100u}) {
      for (std::size_t at = 0; at < vocab; ++at) {
        std::vector<float> logits(vocab, -3.0f);
        logits[at] = -1;
        logits[vocab - 1] = at == vocab / 2 ? -1.0f : logits[vocab - 1];
        Sampler sampler(logits, 1, device);
        ASSERT_EQ(sampler.next()[0], static_cast<std::int32_t>(at));
        ASSERT_EQ(integers(sampler.draws)[0], 0);  // nothing was drawn
      }
    }
    Sampler zeros({-1, -0.0f, 0.0f, -1}, 1, device);
    EXPECT_EQ(zeros.next()[0], 1);  // -0 and 0 are equal
  });
}

TEST_EACH(Sample, NaNCountsAsMinusInfinity, Device device) {
  each_backend(device, [&] {
    Sampler sampler({nan, 1, nan, -inf, 2, nan}, 1, device);
    EXPECT_EQ(sampler.next()[0], 4);
    Sample options;
    options.temperature = 1;
    EXPECT_EQ(possible({nan, 0, nan, -inf, 0, nan}, device, options), (std::set<int>{1, 4}));
  });
}

TEST(Sample, ARowWithoutAFiniteLargestIsAnErrorBeforeAnythingIsWritten) {
  for (const auto& [values, got] :
       {std::pair<std::vector<float>, const char*>{{1, 2, nan, -inf}, "-inf"},
        {{1, 2, 3, inf}, "inf"}}) {
    Sampler sampler(values, 2, Device::cpu());
    sampler.op.temperature = 1;
    sampler.op.seen = sampler.seen;
    expect_error<ArgumentError>(
        std::string("sample: logits: expected a finite largest value in row 1, got ") + got,
        [&] { sampler.next(); });
    EXPECT_EQ(integers(sampler.draws), (std::vector<std::int32_t>{0, 0}));
    EXPECT_EQ(integers(sampler.seen), (std::vector<std::int32_t>{0, 0, 0, 0}));
    EXPECT_EQ(integers(sampler.ids), (std::vector<std::int32_t>{0, 0}));
  }
}

TEST_EACH(Sample, ThePenaltyActsOncePerSeenToken, Device device) {
  each_backend(device, [&] {
    // Seen: 8 / 2 = 4 loses to 5; then 5 / 2 = 2.5 loses to the 4; -1 * 2 = -2.
    Sampler sampler({5, 8, -1, 3.9f}, 1, device);
    sampler.op.repetition_penalty = 2;
    sampler.op.seen = sampler.seen;
    EXPECT_EQ(sampler.next()[0], 1);
    EXPECT_EQ(sampler.next()[0], 0);
    EXPECT_EQ(sampler.next()[0], 1);  // still 4 and not 2: not once more per occurrence
    EXPECT_EQ(sampler.next()[0], 1);
    EXPECT_EQ(integers(sampler.seen), (std::vector<std::int32_t>{1, 3, 0, 0}));

    Sampler negative({-3, -2, -3.5f}, 1, device);
    negative.op.repetition_penalty = 2;
    negative.op.seen = negative.seen;
    EXPECT_EQ(negative.next()[0], 1);  // becomes -4
    EXPECT_EQ(negative.next()[0], 0);  // becomes -6
    EXPECT_EQ(negative.next()[0], 2);  // becomes -7
    EXPECT_EQ(negative.next()[0], 1);
  });
}

TEST_EACH(Sample, AnySeenMarkCountsAndTheChosenIdIsCounted, Device device) {
  std::vector<float> logits(40, 0.0f);
  logits[33] = 3;
  logits[7] = 2;
  Sampler sampler(logits, 1, device);
  std::vector<std::int32_t> marks(40, 0);
  marks[33] = -5;
  sampler.seen = Tensor::from<std::int32_t>(marks, {1, 40}).to(device);
  sampler.op.seen = sampler.seen;
  EXPECT_EQ(sampler.next()[0], 33);  // no penalty: seen is only written
  EXPECT_EQ(integers(sampler.seen)[33], -5) << "a negative mark stays one";
  sampler.op.repetition_penalty = 2;
  EXPECT_EQ(sampler.next()[0], 7);
  EXPECT_EQ(integers(sampler.seen)[7], 1);
}

TEST_EACH(Sample, TopKKeepsTheKLargest, Device device) {
  each_backend(device, [&] {
    Sample options;
    options.temperature = 10;
    options.top_k = 3;
    EXPECT_EQ(possible({1, 5, 2, 4, 3}, device, options), (std::set<int>{1, 3, 4}));
    EXPECT_EQ(possible({-1, -5, 2, -4, -3}, device, options), (std::set<int>{0, 2, 4}));
    EXPECT_EQ(possible({1, 1, 2, 1, 1}, device, options),
              (std::set<int>{0, 1, 2}));  // ties: low ids
    EXPECT_EQ(possible({0, -0.0f, 0, 0}, device, options), (std::set<int>{0, 1, 2}));
    options.top_k = 1;
    EXPECT_EQ(possible({1, 5, 2, 5, 3}, device, options), (std::set<int>{1}));
    options.top_k = 5;
    EXPECT_EQ(possible({1, 5, 2, 4, 3}, device, options).size(), 5u);
    options.top_k = 9;
    EXPECT_EQ(possible({1, 5, 2, 4, 3}, device, options).size(), 5u);
    options.top_k = 2;  // neighbouring floats are told apart
    EXPECT_EQ(possible({1, 1 + 0x1p-23f, 1 + 0x1p-22f, 1}, device, options), (std::set<int>{1, 2}));
  });
}

TEST_EACH(Sample, TopPKeepsTheFewestThatReachIt, Device device) {
  each_backend(device, [&] {
    const std::vector<float> logits = logarithms({0.1, 0.4, 0.05, 0.25, 0.2});
    Sample options;
    options.temperature = 1;
    const auto kept = [&](float p) {
      options.top_p = p;
      return possible(logits, device, options);
    };
    EXPECT_EQ(kept(0), (std::set<int>{1}));
    EXPECT_EQ(kept(0.39f), (std::set<int>{1}));
    EXPECT_EQ(kept(0.41f), (std::set<int>{1, 3}));
    EXPECT_EQ(kept(0.64f), (std::set<int>{1, 3}));
    EXPECT_EQ(kept(0.66f), (std::set<int>{1, 3, 4}));
    EXPECT_EQ(kept(0.94f), (std::set<int>{0, 1, 3, 4}));
    EXPECT_EQ(kept(1), (std::set<int>{0, 1, 2, 3, 4}));
    // Equals: exact sums, the lowest ids first, and no more than needed.
    options.top_p = 0.5f;
    EXPECT_EQ(possible({2, 2, 2, 2}, device, options), (std::set<int>{0, 1}));
    options.top_p = 0.51f;
    EXPECT_EQ(possible({2, 2, 2, 2}, device, options), (std::set<int>{0, 1, 2}));
  });
}

TEST_EACH(Sample, MinPIsRelativeToTheLargest, Device device) {
  each_backend(device, [&] {
    const std::vector<float> logits = logarithms({0.1, 0.4, 0.05, 0.25, 0.2});
    Sample options;
    options.temperature = 1;
    const auto kept = [&](float p) {
      options.min_p = p;
      return possible(logits, device, options);
    };
    EXPECT_EQ(kept(0.1f), (std::set<int>{0, 1, 2, 3, 4}));
    EXPECT_EQ(kept(0.2f), (std::set<int>{0, 1, 3, 4}));
    EXPECT_EQ(kept(0.49f), (std::set<int>{1, 3, 4}));
    EXPECT_EQ(kept(0.51f), (std::set<int>{1, 3}));
    EXPECT_EQ(kept(0.63f), (std::set<int>{1}));
    EXPECT_EQ(kept(1), (std::set<int>{1}));
    options.temperature = 2;  // ratios become roots
    EXPECT_EQ(kept(0.51f), (std::set<int>{1, 3, 4}));
  });
}

// Each limit acts on what the one before left, its probabilities summing to one again.
TEST_EACH(Sample, LimitsActInOrder, Device device) {
  each_backend(device, [&] {
    const std::vector<float> logits = logarithms({0.1, 0.4, 0.05, 0.25, 0.2});
    Sample options;
    options.temperature = 1;
    options.top_k = 2;     // leaves 0.4 and 0.25: 0.615 and 0.385
    options.top_p = 0.6f;  // of which the first reaches 0.6
    EXPECT_EQ(possible(logits, device, options), (std::set<int>{1}));
    options.top_p = 0.62f;
    EXPECT_EQ(possible(logits, device, options), (std::set<int>{1, 3}));
    options.min_p = 0.63f;
    EXPECT_EQ(possible(logits, device, options), (std::set<int>{1}));
  });
}

double chi_square(const std::vector<double>& observed, const std::vector<double>& probabilities) {
  const double total = std::accumulate(observed.begin(), observed.end(), 0.0);
  double sum = 0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    const double expected = total * probabilities[i];
    sum += (observed[i] - expected) * (observed[i] - expected) / expected;
  }
  return sum;
}

TEST_EACH(Sample, FollowsTheSoftmax, Device device) {
  Random random(9);
  std::vector<float> logits;
  for (int i = 0; i < 20; ++i) logits.push_back(static_cast<float>(random.uniform(-3, 3)));
  for (const float temperature : {0.7f, 1.0f, 2.0f}) {
    Sample options;
    options.temperature = temperature;
    std::vector<double> softmax;
    for (const float logit : logits) {
      softmax.push_back(std::exp(static_cast<double>(logit) / static_cast<double>(temperature)));
    }
    const double sum = std::accumulate(softmax.begin(), softmax.end(), 0.0);
    for (double& p : softmax) p /= sum;
    const double statistic = chi_square(counts(logits, 20000, device, options), softmax);
    EXPECT_LT(statistic, 43.8);  // 19 degrees of freedom: one in a thousand is above
    EXPECT_GT(statistic, 4.9);   // and one in two thousand below: too good is wrong as well
  }
}

// 20000 draws from one seed follow the softmax too: consecutive counters are independent.
TEST_EACH(Sample, ConsecutiveDrawsAreIndependent, Device device) {
  Sampler sampler({0, 0, 0, 0}, 1, device);
  sampler.op.temperature = 1;
  std::vector<double> pairs(16, 0.0);
  std::int32_t before = sampler.next()[0];
  const int draws = device.is_cpu() ? 20000 : 2000;
  for (int i = 0; i < draws; ++i) {
    const std::int32_t id = sampler.next()[0];
    ++pairs[static_cast<std::size_t>(before * 4 + id)];
    before = id;
  }
  EXPECT_LT(chi_square(pairs, std::vector<double>(16, 1.0 / 16)), 37.7);  // 15, one in a thousand
  EXPECT_EQ(integers(sampler.draws)[0], draws + 1);
}

// The first few draws of a seed, from the definition: Philox keyed by the seed at counter draws.
TEST_EACH(Sample, TheNumbersArePhiloxOfSeedAndDraws, Device device) {
  Sampler sampler(std::vector<float>(1000, 1.0f), 1, device);  // the id is floor(1000 uniform)
  sampler.op.temperature = 1;
  sampler.seed = Tensor::from<std::int32_t>({-5, 123}, {1, 2}).to(device);
  sampler.op.seed = sampler.seed;
  sampler.draws = Tensor::from<std::int32_t>({-2}, {1}).to(device);
  sampler.op.draws = sampler.draws;
  for (const std::uint32_t draw : {0xfffffffeu, 0xffffffffu, 0u, 1u}) {
    const auto words = detail::philox(std::uint64_t{123} << 32 | 0xfffffffbu, {draw, 0, 0, 0});
    EXPECT_EQ(sampler.next()[0], static_cast<std::int32_t>(1000 * detail::uniform(words)));
  }
  EXPECT_EQ(integers(sampler.draws)[0], 2);
}

TEST_EACH(Sample, ARowDependsOnItsSeedAndDrawsAlone, Device device) {
  Random random(11);
  const std::int64_t batch = 7, vocab = 500;
  std::vector<float> values;
  for (std::int64_t i = 0; i < batch * vocab; ++i)
    values.push_back(static_cast<float>(random.normal(2)));
  const auto options = [](Sample& op) {
    op.temperature = 1.3f;
    op.top_k = 100;
    op.top_p = 0.95f;
    op.min_p = 0.001f;
  };
  Sampler all(values, batch, device);
  options(all.op);
  std::vector<std::vector<std::int32_t>> expected;
  for (int i = 0; i < 5; ++i) expected.push_back(all.next());
  Sampler again(values, batch, device);
  options(again.op);
  Stream three(device, 3);
  for (int i = 0; i < 5; ++i) {
    run(again.op, three);
    three.synchronize();
    EXPECT_EQ(integers(again.ids), expected[static_cast<std::size_t>(i)]);
  }
  for (std::int64_t b = 0; b < batch; ++b) {
    Sampler one({values.begin() + b * vocab, values.begin() + (b + 1) * vocab}, 1, device);
    options(one.op);
    one.seed = Tensor::from<std::int32_t>({static_cast<std::int32_t>(b), 77}, {1, 2}).to(device);
    one.op.seed = one.seed;
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(one.next()[0], expected[static_cast<std::size_t>(i)][static_cast<std::size_t>(b)]);
    }
  }
}

// One call for rows that all choose in their own way, scattered over a larger batch: each row gets
// what a call for it alone gives, and nothing else is touched.
TEST_EACH(Sample, RowsOfALargerBatchEachWithItsOwnOptions, Device device) {
  each_backend(device, [&] {
    Random random(21);
    const std::int64_t batch = 9, vocab = 300;
    std::vector<float> values;
    for (std::int64_t i = 0; i < batch * vocab; ++i) {
      values.push_back(static_cast<float>(random.normal(2)));
    }
    const std::vector<float> temperatures{1, 0, 0.7f, 2, 0, 1.5f, 1, 30, 1};
    const std::vector<std::int32_t> top_ks{0, 0, 5, 20, 0, 0, 1, 0, 400};
    const std::vector<float> top_ps{1, 1, 0.9f, 1, 1, 0.5f, 1, 1, 0.95f};
    const std::vector<float> min_ps{0, 0, 0, 0.02f, 0, 0.1f, 0, 0, 0.5f};
    const std::vector<float> penalties{1, 1.5f, 1, 2, 1, 1.1f, 3, 1, 1};
    const auto floats = [&](const std::vector<float>& list) {
      return Tensor::from(list, {batch}).to(device);
    };
    const Tensor temperature = floats(temperatures), top_p = floats(top_ps), min_p = floats(min_ps),
                 penalty = floats(penalties);
    const Tensor top_k = Tensor::from(top_ks, {batch}).to(device);
    const std::vector<std::int32_t> list{7, 1, 2, 8, 3, 5};
    const Tensor rows = Tensor::from(list, {6}).to(device);
    Sampler all(values, batch, device);
    all.op.seen = all.seen;
    all.op.rows = rows;
    all.op.temperatures = temperature;
    all.op.top_ks = top_k;
    all.op.top_ps = top_p;
    all.op.min_ps = min_p;
    all.op.repetition_penalties = penalty;
    std::vector<Sampler> alone;
    for (std::int64_t b = 0; b < batch; ++b) {
      alone.emplace_back(
          std::vector<float>(values.begin() + b * vocab, values.begin() + (b + 1) * vocab), 1,
          device);
      Sampler& one = alone.back();
      const auto i = static_cast<std::size_t>(b);
      one.seed = Tensor::from<std::int32_t>({static_cast<std::int32_t>(b), 77}, {1, 2}).to(device);
      one.op.seed = one.seed;
      one.op.seen = one.seen;
      one.op.temperature = temperatures[i];
      one.op.top_k = top_ks[i];
      one.op.top_p = top_ps[i];
      one.op.min_p = min_ps[i];
      one.op.repetition_penalty = penalties[i];
    }
    for (int step = 0; step < 20; ++step) {
      const std::vector<std::int32_t> got = all.next();
      for (std::int64_t b = 0; b < batch; ++b) {
        const bool named = std::count(list.begin(), list.end(), b) > 0;
        const auto i = static_cast<std::size_t>(b);
        ASSERT_EQ(got[i], named ? alone[i].next()[0] : 0) << "row " << b << ", step " << step;
      }
    }
    const std::vector<std::int32_t> seen = integers(all.seen), draws = integers(all.draws);
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto i = static_cast<std::size_t>(b);
      EXPECT_EQ(draws[i], integers(alone[i].draws)[0]);
      EXPECT_EQ(std::vector<std::int32_t>(seen.begin() + b * vocab, seen.begin() + (b + 1) * vocab),
                integers(alone[i].seen));
    }
  });
}

Tensor list(const std::vector<std::int32_t>& values) {
  return Tensor::from(values, {static_cast<std::int64_t>(values.size())});
}

TEST(Sample, RowsAndValuesOutOfRangeAreNamedAndHarmNothing) {
  Sampler host({1, 2, 3, 4, 5, 6}, 2, Device::cpu());
  const Tensor beyond = list({0, 2}), twice = list({1, 1}), one = list({1});
  host.op.rows = beyond;
  expect_error<ArgumentError>("sample: rows: expected rows 0 to 1, got 2", [&] { host.next(); });
  host.op.rows = twice;
  expect_error<ArgumentError>("sample: rows: expected every row at most once, got 1 twice",
                              [&] { host.next(); });
  host.op.rows = one;
  EXPECT_EQ(host.next(), (std::vector<std::int32_t>{0, 2}));
  const Tensor unused = Tensor::from<float>({-1, 1}, {2});
  host.op.temperatures = unused;
  host.next();
  const Tensor cold = Tensor::from<float>({1, -1}, {2});
  host.op.temperatures = cold;
  expect_error<ArgumentError>("sample: temperatures: expected 0 to 1000000, got -1",
                              [&] { host.next(); });
  host.op.seed = {};
  const Tensor warm = Tensor::from<float>({1, 1}, {2});
  host.op.temperatures = warm;
  expect_error<ArgumentError>("sample: seed: expected a tensor, got none", [&] { host.next(); });
}

TEST_EACH(Sample, RowsAndValuesOutOfRangeOnCudaHarmNothing, testing::CudaDevice device) {
  Sampler sampler({1, 2, 3, 4, 5, 6}, 2, device);
  const Tensor bad = list({-1, 1, 1 << 30}).to(device);
  sampler.op.rows = bad;
  Stream& stream = default_stream(device);
  run(sampler.op, stream);
  expect_error<ArgumentError>("sample: rows: expected rows of the logits, got one outside of them",
                              [&] { stream.synchronize(); });
  EXPECT_EQ(integers(sampler.ids), (std::vector<std::int32_t>{0, 2}));
  sampler.op.rows = {};
  const Tensor wild = Tensor::from<float>({nan, inf}, {2}).to(device);
  const Tensor low = list({-5, -1}).to(device);
  for (ConstTensorView Sample::*values :
       {&Sample::temperatures, &Sample::top_ps, &Sample::min_ps}) {
    Sampler any({1, 2, 3, 4, 5, 6}, 2, device);
    any.op.temperature = 1;
    any.op.*values = wild;
    any.op.top_ks = low;
    for (const std::int32_t id : any.next()) EXPECT_TRUE(id >= 0 && id < 3);
  }
}

TEST_EACH(Sample, LargeVocabularyAgainstASort, Device device) {
  Random random(12);
  const std::size_t vocab = 5000;
  std::vector<float> logits;  // coarse values: many ties
  for (std::size_t i = 0; i < vocab; ++i) {
    logits.push_back(static_cast<float>(std::round(random.normal(8)) / 4));
  }
  std::vector<std::size_t> order(vocab);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  for (const std::int64_t k : {1, 10, 999, 4999}) {
    for (const float p : {1.0f, 0.3f, 0.97f}) {
      double total = 0, sum = 0;
      const auto weight = [&](std::size_t id) { return std::exp(static_cast<double>(logits[id])); };
      for (std::int64_t i = 0; i < k; ++i) total += weight(order[static_cast<std::size_t>(i)]);
      std::set<std::int32_t> allowed;
      for (std::int64_t i = 0; i < k && (i == 0 || sum < static_cast<double>(p) * total); ++i) {
        sum += weight(order[static_cast<std::size_t>(i)]);
        allowed.insert(static_cast<std::int32_t>(order[static_cast<std::size_t>(i)]));
      }
      Sampler sampler(logits, 1, device);
      sampler.op.temperature = 1;
      sampler.op.top_k = k;
      sampler.op.top_p = p;
      for (int i = 0; i < 30; ++i) ASSERT_EQ(allowed.count(sampler.next()[0]), 1u) << k << " " << p;
    }
  }
}

TEST_EACH(Sample, ExtremeLogitsAndTemperatures, Device device) {
  each_backend(device, [&] {
    for (const float temperature : {1e-30f, 1.0f, 1e6f}) {
      Sampler sampler({-3e38f, 3e38f, -3e38f, -inf}, 1, device);
      sampler.op.temperature = temperature;
      sampler.op.top_p = 0.9f;
      for (int i = 0; i < 20; ++i) EXPECT_EQ(sampler.next()[0], 1);
    }
  });
}

// Each row has its token, however many rows the threads of the stream share.
TEST(Sample, MoreRowsThanThreadsCountIn16Bits) {
  for (const std::int64_t rows : {65535, 65536, 70000, 131072}) {
    Stream stream(Device::cpu(), 2);
    Tensor logits = Tensor::zeros({rows, 2}, DType::f32);
    std::vector<std::int32_t> expected;
    for (std::int64_t i = 0; i < rows; ++i) {
      expected.push_back(i % 3 == 0 ? 1 : 0);
      logits.data<float>()[2 * i + expected.back()] = 1;
    }
    Tensor ids = Tensor::from(std::vector<std::int32_t>(expected.size(), -1), {rows});
    Sample sample;
    sample.logits = logits;
    sample.ids = ids;
    run(sample, stream);
    EXPECT_TRUE(integers(ids) == expected) << rows << " rows";
  }
}

TEST(Sample, WrongOperandsAreNamed) {
  const auto expect = [&](const std::string& text, auto change) {
    Sampler sampler({1, 2, 3, 4, 5, 6}, 2, Device::cpu());
    sampler.op.temperature = 1;
    change(sampler);
    expect_error<ArgumentError>("sample: " + text, [&] { sampler.next(); });
  };
  const Tensor other({2, 4}, DType::i32);
  expect("logits: expected a tensor, got none", [](Sampler& s) { s.op.logits = {}; });
  expect("logits: expected f32, got i32", [](Sampler& s) { s.op.logits = s.seen; });
  expect("ids: expected [2], got [2, 3]", [](Sampler& s) { s.op.ids = s.seen; });
  expect("seed: expected a tensor, got none", [](Sampler& s) { s.op.seed = {}; });
  expect("seed: expected [2, 2], got [2, 4]", [&](Sampler& s) { s.op.seed = other; });
  expect("draws: expected a tensor, got none", [](Sampler& s) { s.op.draws = {}; });
  expect("seen: expected a tensor, got none", [](Sampler& s) { s.op.repetition_penalty = 2; });
  expect("temperature: expected 0 to 1000000, got -1", [](Sampler& s) { s.op.temperature = -1; });
  expect("temperature: expected 0 to 1000000, got nan", [](Sampler& s) { s.op.temperature = nan; });
  expect("top_p: expected 0 to 1, got 1.5", [](Sampler& s) { s.op.top_p = 1.5f; });
  expect("min_p: expected 0 to 1, got -0.5", [](Sampler& s) { s.op.min_p = -0.5f; });
  expect("repetition_penalty: expected 0.001 to 1000, got 0",
         [](Sampler& s) { s.op.repetition_penalty = 0; });
  expect("top_k: expected 0 to 1073741824, got -1", [](Sampler& s) { s.op.top_k = -1; });
  const Tensor none({0, 3}, DType::f32), nobody({2, 0}, DType::f32);
  Tensor ids({0}, DType::i32);
  Sample op;
  op.logits = none;
  op.ids = ids;
  run(op, default_stream());
  op.logits = nobody;
  expect_error<ArgumentError>("sample: vocab: expected 1 to 1073741824, got 0",
                              [&] { run(op, default_stream()); });
}

}  // namespace
}  // namespace mamba
