// What a Mamba-2 layer has of its own: fresh weights, a state with heads, and a mixer's refusals.
// Its properties are tested with those of every layer.
#include <mamba/layer.hpp>
#include <mamba/state_file.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include "each.hpp"
#include "files.hpp"
#include "model/layer_variants.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::config_of;
using testing::expect_error;
using testing::lively_layer;
using testing::mamba2_of;
using testing::Random;
using testing::values;

MambaState random_state(const LayerConfig& config, std::int64_t batch, DType dtype, Device device) {
  Random random(3);
  MambaState state(config, batch, dtype, device);
  state.conv = random.normal_tensor(state.conv.shape(), dtype).to(device);
  state.ssm = random.normal_tensor(state.ssm.shape()).to(device);
  return state;
}

TEST(Mamba2Initialisation, FollowsThePublishedRecipe) {
  LayerConfig config = mamba2_of(64, 16, 4, 2, 4);
  config.use_bias = true;
  const LayerWeights w = random_layer_weights(config, DType::f32, 5, 4);
  EXPECT_EQ(w.in_proj.shape(), (Shape{128 + 128 + 128 + 64, 64}));
  EXPECT_EQ(w.conv_weight.shape(), (Shape{256, 4}));
  EXPECT_EQ(w.dt_bias.shape(), (Shape{64}));
  EXPECT_FALSE(w.x_proj);
  EXPECT_FALSE(w.dt_proj);
  const auto expect_uniform = [](const Tensor& tensor, double low, double high, const char* name) {
    const std::vector<double> v = values(tensor);
    const auto [least, most] = std::minmax_element(v.begin(), v.end());
    const double margin = 0.1 * (high - low);
    EXPECT_GE(*least, low - 1e-6) << name;
    EXPECT_LT(*least, low + margin) << name;
    EXPECT_LE(*most, high + 1e-6) << name;
    EXPECT_GT(*most, high - margin) << name;
  };
  expect_uniform(w.in_proj, -1 / 8.0, 1 / 8.0, "in_proj");
  expect_uniform(w.conv_weight, -0.5, 0.5, "conv_weight");
  expect_uniform(w.conv_bias, -0.5, 0.5, "conv_bias");
  const double out = 1 / std::sqrt(128.0) / 2;
  expect_uniform(w.out_proj, -out, out, "out_proj over sqrt(n_layer)");
  Tensor A(w.A_log.shape(), DType::f32), log_dt(w.dt_bias.shape(), DType::f32);
  for (std::int64_t i = 0; i < A.count(); ++i) {
    A.data<float>()[i] = std::exp(w.A_log.data<float>()[i]);
    log_dt.data<float>()[i] = std::log(std::log1p(std::exp(w.dt_bias.data<float>()[i])));
  }
  expect_uniform(A, 1, 16, "A");
  expect_uniform(log_dt, std::log(1e-3), std::log(0.1), "log dt");
  for (const double d : values(w.D)) EXPECT_EQ(d, 1);
  for (const double one : values(w.gated_norm_weight)) EXPECT_EQ(one, 1);
  for (const double zero : values(w.in_proj_bias)) EXPECT_EQ(zero, 0);
  EXPECT_EQ(bits(random_layer_weights(config, DType::f32, 5, 4).A_log), bits(w.A_log));
}

TEST(Mamba2Weights, OnlyMatricesDecay) {
  const LayerConfig config = mamba2_of(16, 8, 4, 8, 2).resolved();
  for (const detail::LayerWeight& one : detail::layer_weights(config, DType::f32)) {
    EXPECT_EQ(one.decays,
              one.tensor == &LayerWeights::in_proj || one.tensor == &LayerWeights::out_proj)
        << one.name;
  }
}

TEST_EACH(Mamba2State, IsTheMemoryOfThePublishedOne, Device device) {
  const LayerConfig config = mamba2_of(16, 5, 4, 8, 2);
  MambaState state = random_state(config, 3, DType::f32, device);
  EXPECT_EQ(state.conv.shape(), (Shape{3, 32 + 2 * 2 * 5, 3}));
  const TensorView heads = by_heads(state.ssm, config);
  EXPECT_EQ(heads.shape(), (Shape{3, 4, 8, 5}));
  EXPECT_EQ(heads.data(), state.ssm.view().data());
  const Tensor& constant = state.ssm;
  EXPECT_EQ(by_heads(constant, config).data(), state.ssm.view().data());
  expect_error<ArgumentError>("by_heads: config: expected a layer with heads, got Mamba1",
                              [&] { by_heads(state.ssm, config_of(16, 5, 4)); });
  expect_error<ArgumentError>("by_heads: ssm: expected [3, 32, 6], got [3, 32, 5]",
                              [&] { by_heads(state.ssm, mamba2_of(16, 6, 4, 8, 2)); });
  expect_error<ArgumentError>("by_heads: ssm: expected 3 dimensions, got [480]", [&] {
    Tensor flat({480}, DType::f32, device);
    by_heads(flat, config);
  });
}

// Its convolution has other channels than its heads have, which no verb may mix up.
TEST_EACH(Mamba2State, EveryVerbKeepsBothWidths, Device device, DType dtype) {
  const LayerConfig config = mamba2_of(16, 5, 4, 8, 2);
  const MambaState state = random_state(config, 3, dtype, device);
  const auto row = [](const Tensor& tensor, std::int64_t i) {
    return bits(tensor.view().rows(i, 1));
  };
  const MambaState picked = state.gather({2, 0, 2});
  EXPECT_EQ(row(picked.conv, 2), row(state.conv, 2));
  EXPECT_EQ(row(picked.ssm, 1), row(state.ssm, 0));
  MambaState target(config, 4, dtype, device);
  target.scatter(picked, {3, 0, 1});
  EXPECT_EQ(row(target.conv, 3), row(state.conv, 2));
  EXPECT_EQ(row(target.ssm, 0), row(state.ssm, 0));
  const MambaState joined = MambaState::concat({&state, &picked});
  EXPECT_EQ(row(joined.conv, 4), row(state.conv, 0));
  EXPECT_EQ(row(state.repeat(2).conv, 5), row(state.conv, 2));
  EXPECT_EQ(state.to(Device::cpu()).conv.shape(), state.conv.shape());
  EXPECT_EQ(state.bytes(), 3 * (52 * 3 * size_of(dtype) + 32 * 5 * 4));

  const testing::TemporaryFolder folder;
  save(folder.file("state"), state);
  const SavedState saved = load_state(folder.file("state"), device);
  EXPECT_EQ(bits(saved.state.layers.at(0).conv), bits(state.conv));
  EXPECT_EQ(bits(saved.state.layers.at(0).ssm), bits(state.ssm));
}

TEST_EACH(Mamba2State, OfAnotherArchitectureIsRefused, Device device) {
  const Layer one = lively_layer(config_of(16, 8, 4), DType::f32, device, 1);
  const Layer two = lively_layer(mamba2_of(16, 8, 4, 8, 2), DType::f32, device, 1);
  const Tensor x = Tensor::zeros({2, 3, 16}, DType::f32, device);
  Tensor y = Tensor::zeros({2, 3, 16}, DType::f32, device);
  Stream& stream = default_stream(device);
  MambaState state = one.make_state(2), state2 = two.make_state(2);
  expect_error<ArgumentError>("Layer::forward: state.conv: expected [2, 64, 3], got [2, 32, 3]",
                              [&] { two.forward(x, state, y, stream); });
  expect_error<ArgumentError>("Layer::forward: state.conv: expected [2, 32, 3], got [2, 64, 3]",
                              [&] { one.forward(x, state2, y, stream); });
  expect_error<ArgumentError>("MambaState::copy_from: conv: expected [2, 64, 3], got [2, 32, 3]",
                              [&] { state2.copy_from(state); });
  expect_error<ArgumentError>("Layer: in_proj.weight: expected [100, 16], got [64, 16]", [&] {
    Layer(two.config(), random_layer_weights(one.config(), DType::f32, 1));
  });
}

// A select on the way out: a row that is padding may hold anything.
TEST_EACH(Mamba2Layer, PaddingIsZeroWhateverItHolds, Device device, DType dtype) {
  const Layer layer = lively_layer(mamba2_of(16, 8, 4, 8, 2), dtype, device, 1);
  Random random(4);
  Tensor x = random.normal_tensor({2, 3, 16});
  std::fill_n(x.data<float>() + 48, 48, std::numeric_limits<float>::quiet_NaN());
  MambaState slots = random_state(layer.config(), 2, dtype, device);
  const MambaState before = slots.clone();
  LayerOptions options;
  const Tensor rows = Tensor::from<std::int32_t>({1, -1}, {2}).to(device);
  options.rows.read = options.rows.write = rows;
  const Tensor moved = x.to(device, dtype);
  Tensor y(x.shape(), dtype, device);
  Stream& stream = default_stream(device);
  layer.forward(moved, slots, y, stream, options);
  stream.synchronize();
  for (const double value : values(y.view().rows(0, 1))) EXPECT_TRUE(std::isfinite(value));
  for (const double value : values(y.view().rows(1, 1))) EXPECT_EQ(value, 0);
  EXPECT_EQ(bits(slots.ssm.view().rows(0, 1)), bits(before.ssm.view().rows(0, 1)));
}

}  // namespace
}  // namespace mamba
