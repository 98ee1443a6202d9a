// TokenLoss: the parts of a batch add up to it, and a loss scale is in the gradient alone.
#include <mamba/loss.hpp>

#include <gtest/gtest.h>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::Random;
using testing::values;

constexpr std::int64_t batch = 5, time_steps = 7, vocab = 11;

struct Batch {
  Tensor logits, targets;
  explicit Batch(Device device) {
    Random random(1);
    logits = random.normal_tensor({batch, time_steps, vocab}).to(device);
    std::vector<std::int32_t> list;
    for (std::int64_t i = 0; i < batch * time_steps; ++i) {
      list.push_back(static_cast<std::int32_t>(random.integer(-1, vocab - 1)));
      counted += list.back() >= 0 ? 1 : 0;
    }
    targets = Tensor::from(list, {batch, time_steps}).to(device);
  }
  std::int64_t counted = 0;
};

TEST_EACH(TokenLoss, PartsOfABatchAddUpToIt, Device device) {
  const Batch data(device);
  Stream& stream = default_stream(device);
  Tensor whole(data.logits.shape(), DType::bf16, device), parts = whole.clone();
  TokenLoss loss;
  loss.run(data.logits, data.targets, {data.counted, whole}, stream);
  const double mean = loss.mean(stream);
  double sum = 0;
  for (const auto& [first, rows] : {std::pair<std::int64_t, std::int64_t>{0, 2}, {2, 3}}) {
    loss.run(data.logits.view().rows(first, rows), data.targets.view().rows(first, rows),
             {data.counted, parts.view().rows(first, rows)}, stream);
    sum += loss.mean(stream);
  }
  EXPECT_EQ(bits(parts), bits(whole));
  EXPECT_NEAR(sum, mean, 40 * testing::f32_roundoff * mean);
}

TEST_EACH(TokenLoss, ALossScaleIsInTheGradientAlone, Device device) {
  const Batch data(device);
  Stream& stream = default_stream(device);
  Tensor plain(data.logits.shape(), DType::f32, device), scaled = plain.clone();
  TokenLoss loss;
  loss.run(data.logits, data.targets, {data.counted, plain}, stream);
  const float mean = loss.mean(stream);
  loss.run(data.logits, data.targets, {data.counted, scaled, 65536}, stream);
  EXPECT_EQ(loss.mean(stream), mean);
  const std::vector<double> expected = values(plain), got = values(scaled);
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], 65536 * expected[i]);
}

TEST(TokenLoss, Errors) {
  const Batch data(Device::cpu());
  TokenLoss loss;
  expect_error<ArgumentError>("TokenLoss::run: counted: expected 1 to 1099511627776, got 0",
                              [&] { loss.run(data.logits, data.targets, {0}, default_stream()); });
  expect_error<ArgumentError>("TokenLoss::mean: run: expected a tensor, got none",
                              [&] { loss.mean(default_stream()); });
}

}  // namespace
}  // namespace mamba
