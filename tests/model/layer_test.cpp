// A layer with its state in the caller's hands: whole or in pieces, batched or alone, reset or
// fresh.
#include <mamba/layer.hpp>

#include <thread>

#include "each.hpp"
#include "model/layer_reference.hpp"
#include "model/layer_variants.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::config_of;
using testing::expect_error;
using testing::lively_layer;
using testing::Random;
using testing::relative_error;
using testing::values;
using testing::Variant;
using testing::variants;

// How far two ways of cutting or batching one computation may lie apart: a few roundings of the
// storage type, since a Matmul row may round differently with another number of rows.
double cut_bound(DType dtype) { return dtype == DType::f32 ? 5e-6 : 8 * testing::roundoff(dtype); }

// body(layer, random) for a layer of every option.
template <class Body>
void each_variant(Device device, DType dtype, Body body) {
  for (const Variant& variant : variants()) {
    SCOPED_TRACE(variant.name);
    body(lively_layer(variant.config, dtype, device, 7), Random(11));
  }
}

Tensor input(Random& random, const Layer& layer, std::int64_t batch, std::int64_t time) {
  return random.normal_tensor({batch, time, layer.config().d_model}, layer.dtype())
      .to(layer.device());
}

// Runs x through the layer in pieces of the given lengths.
Tensor in_pieces(const Layer& layer, const Tensor& x, MambaState& state,
                 const std::vector<std::int64_t>& pieces) {
  Tensor y(x.shape(), layer.dtype(), layer.device());
  Stream& stream = default_stream(layer.device());
  std::int64_t first = 0;
  for (std::int64_t count : pieces) {
    layer.forward(x.view().steps(first, count), state, y.view().steps(first, count), stream);
    first += count;
  }
  stream.synchronize();
  EXPECT_EQ(first, x.dim(1));
  return y;
}

TEST_EACH(LayerTest, AgreesWithTheFp64Reference, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 2, 19);
    MambaState state = layer.make_state(2);
    state.ssm = random.normal_tensor(state.ssm.shape()).to(layer.device());
    state.conv = random.normal_tensor(state.conv.shape(), layer.dtype()).to(layer.device());
    const testing::LayerResult exact = testing::LayerReference(layer).forward(x, state);
    const testing::LayerResult stored =
        testing::LayerReference(layer, layer.dtype()).forward(x, state);
    const Tensor y = layer.forward(x, state);
    const auto expect_close = [&](const Tensor& got, const std::vector<double>& truth,
                                  const std::vector<double>& rounded, const char* what) {
      // Twice what rounding each stage's output to storage costs, and the f32 sums (80 roundings).
      const double bound = 2 * relative_error(rounded, truth) + 80 * testing::roundoff(DType::f32);
      EXPECT_LE(relative_error(values(got), truth), bound) << what;
    };
    expect_close(y, exact.y, stored.y, "y");
    expect_close(state.ssm, exact.ssm, stored.ssm, "ssm");
    expect_close(state.conv, exact.conv, stored.conv, "conv");
  });
}

TEST_EACH(LayerTest, SplitAnywhere, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 2, 23);
    MambaState whole = layer.make_state(2);
    const Tensor y = layer.forward(x, whole);
    const std::int64_t d_conv = layer.config().d_conv;
    const std::vector<std::vector<std::int64_t>> cuts{{0, 23},
                                                      {1, 22},
                                                      {d_conv - 1, 24 - d_conv},
                                                      {d_conv, 23 - d_conv},
                                                      {22, 1},
                                                      {7, 7, 7, 2},
                                                      {8, 8, 7},
                                                      {16, 7},
                                                      {1, 1, 1, 1, 1, 1, 1, 16},
                                                      {0, 11, 0, 0, 12, 0},
                                                      std::vector<std::int64_t>(23, 1)};
    for (const auto& cut : cuts) {
      MambaState state = layer.make_state(2);
      const Tensor pieces = in_pieces(layer, x, state, cut);
      EXPECT_LT(relative_error(values(pieces), values(y)), cut_bound(layer.dtype()));
      EXPECT_LT(relative_error(values(state.ssm), values(whole.ssm)), cut_bound(layer.dtype()));
      EXPECT_LT(relative_error(values(state.conv), values(whole.conv)), cut_bound(layer.dtype()));
    }
  });
}

TEST_EACH(LayerTest, ResetsAreSeparateSequencesFromFreshStates, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 2, 12);
    // Row 0 is reset before steps 0 and 5, row 1 before step 9.
    std::vector<std::int32_t> flags(24, 0);
    flags[0] = flags[5] = 1;
    flags[12 + 9] = -3;  // any value but zero
    const Tensor reset = Tensor::from(flags, {2, 12}).to(layer.device());
    MambaState state = layer.make_state(2);
    state.ssm = random.normal_tensor(state.ssm.shape()).to(layer.device());
    state.conv = random.normal_tensor(state.conv.shape(), layer.dtype()).to(layer.device());
    const MambaState start = state.clone();
    Tensor y(x.shape(), layer.dtype(), layer.device());
    Stream& stream = default_stream(layer.device());
    LayerOptions options;
    options.reset = reset;
    layer.forward(x, state, y, stream, options);
    stream.synchronize();

    const auto expect_piece = [&](std::int64_t row, std::int64_t first, std::int64_t count,
                                  MambaState from) {
      Tensor part(Shape{1, count, x.dim(2)}, layer.dtype(), layer.device());
      layer.forward(x.view().rows(row, 1).steps(first, count), from, part, stream);
      stream.synchronize();
      EXPECT_LT(relative_error(values(y.view().rows(row, 1).steps(first, count)), values(part)),
                cut_bound(layer.dtype()))
          << "row " << row << " from step " << first;
      return from;
    };
    const Tensor row1 = Tensor::from<std::int32_t>({1}, {1}).to(layer.device());
    expect_piece(0, 0, 5, layer.make_state(1));
    const MambaState end0 = expect_piece(0, 5, 7, layer.make_state(1));
    expect_piece(1, 0, 9, start.gather(row1));
    const MambaState end1 = expect_piece(1, 9, 3, layer.make_state(1));
    const MambaState end = MambaState::concat({&end0, &end1});
    EXPECT_LT(relative_error(values(state.ssm), values(end.ssm)), cut_bound(layer.dtype()));
    EXPECT_LT(relative_error(values(state.conv), values(end.conv)), cut_bound(layer.dtype()));
  });
}

TEST_EACH(LayerTest, IsCausal, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 1, 10);
    const Tensor y = layer.forward(x);
    Tensor changed = x.to(Device::cpu(), DType::f32);
    for (std::int64_t i = 6 * x.dim(2); i < x.count(); ++i) changed.data<float>()[i] += 1;
    const Tensor y_changed = layer.forward(changed.to(layer.device(), layer.dtype()));
    EXPECT_EQ(bits(y.view().steps(0, 6)), bits(y_changed.view().steps(0, 6)));
    EXPECT_NE(bits(y.view().steps(6, 4)), bits(y_changed.view().steps(6, 4)));
  });
}

TEST_EACH(LayerTest, RowMapsReadAndWriteTheRowsTheyName, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const std::int64_t time = 3;
    MambaState slots = layer.make_state(5);
    slots.ssm = random.normal_tensor(slots.ssm.shape()).to(layer.device());
    slots.conv = random.normal_tensor(slots.conv.shape(), layer.dtype()).to(layer.device());
    const MambaState before = slots.clone();
    const Tensor x = input(random, layer, 4, time);
    // Row 0 goes on in place, row 1 branches from slot 2 into slot 0, row 2 is padding, row 3
    // starts fresh and is dropped.
    const Tensor read = Tensor::from<std::int32_t>({4, 2, -1, -1}, {4}).to(layer.device());
    const Tensor write = Tensor::from<std::int32_t>({4, 0, -1, -1}, {4}).to(layer.device());
    LayerOptions options;
    options.rows.read = read;
    options.rows.write = write;
    Tensor y(x.shape(), layer.dtype(), layer.device());
    Stream& stream = default_stream(layer.device());
    layer.forward(x, slots, y, stream, options);
    stream.synchronize();

    const Tensor chosen = Tensor::from<std::int32_t>({4, 2}, {2}).to(layer.device());
    MambaState alone = before.gather(chosen);
    Tensor y_alone(Shape{2, time, x.dim(2)}, layer.dtype(), layer.device());
    layer.forward(x.view().rows(0, 2), alone, y_alone, stream);
    stream.synchronize();
    const double bound = cut_bound(layer.dtype());
    EXPECT_LT(relative_error(values(y.view().rows(0, 2)), values(y_alone)), bound);
    EXPECT_LT(
        relative_error(values(slots.ssm.view().rows(4, 1)), values(alone.ssm.view().rows(0, 1))),
        bound);
    EXPECT_LT(
        relative_error(values(slots.ssm.view().rows(0, 1)), values(alone.ssm.view().rows(1, 1))),
        bound);
    for (std::int64_t untouched : {1, 2, 3}) {
      EXPECT_EQ(bits(slots.ssm.view().rows(untouched, 1)),
                bits(before.ssm.view().rows(untouched, 1)));
      EXPECT_EQ(bits(slots.conv.view().rows(untouched, 1)),
                bits(before.conv.view().rows(untouched, 1)));
    }
    for (double value : values(y.view().rows(2, 1))) EXPECT_EQ(value, 0) << "padding";
  });
}

TEST_EACH(LayerTest, StepStatesGoBackToAnyStep, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 2, 6);
    LayerSteps steps;
    LayerOptions options;
    options.steps = &steps;
    MambaState state = layer.make_state(2);
    Tensor y(x.shape(), layer.dtype(), layer.device());
    Stream& stream = default_stream(layer.device());
    layer.forward(x, state, y, stream, options);
    for (std::int64_t t = 0; t < 6; ++t) {
      MambaState back = layer.make_state(2);
      steps.restore(t, back, stream);
      stream.synchronize();
      MambaState prefix = layer.make_state(2);
      Tensor y_prefix(x.shape().with(1, t + 1), layer.dtype(), layer.device());
      layer.forward(x.view().steps(0, t + 1), prefix, y_prefix, stream);
      stream.synchronize();
      EXPECT_LT(relative_error(values(back.ssm), values(prefix.ssm)), cut_bound(layer.dtype()));
      EXPECT_LT(relative_error(values(back.conv), values(prefix.conv)), cut_bound(layer.dtype()));
    }
  });
}

TEST(LayerTest, StepStatesThatWereNotKeptAreNotRestored) {
  LayerSteps none;
  MambaState state(config_of(8, 4, 2), 1, DType::f32);
  Stream& stream = default_stream();
  EXPECT_THROW(none.restore(0, state, stream), ArgumentError);
}

TEST_EACH(LayerTest, ResultsAreTheSameBitsEveryTimeAndInEveryThread, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    const Tensor x = input(random, layer, 2, 9);
    MambaState state = layer.make_state(2);
    const Tensor y = layer.forward(x, state);
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; ++i) {
      threads.emplace_back([&] {
        for (int repeat = 0; repeat < 3; ++repeat) {
          MambaState own = layer.make_state(2);
          EXPECT_EQ(bits(layer.forward(x, own)), bits(y));
          EXPECT_EQ(bits(own.ssm), bits(state.ssm));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
}

TEST_EACH(LayerTest, NothingToDoIsLegal, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    MambaState state = layer.make_state(2);
    state.ssm = random.normal_tensor(state.ssm.shape()).to(layer.device());
    const MambaState before = state.clone();
    const Tensor none = input(random, layer, 2, 0);
    EXPECT_EQ(layer.forward(none, state).shape(), none.shape());
    EXPECT_EQ(bits(state.ssm), bits(before.ssm));
    MambaState nobody = layer.make_state(0);
    EXPECT_EQ(layer.forward(input(random, layer, 0, 4), nobody).shape(),
              (Shape{0, 4, layer.config().d_model}));
  });
}

TEST_EACH(LayerTest, InputsOfAHundredStayFinite, Device device, DType dtype) {
  each_variant(device, dtype, [](const Layer& layer, Random random) {
    // x and z multiply, and f16 ends at 65504: there 10 is what 100 is to the others.
    const double size = layer.dtype() == DType::f16 ? 10 : 100;
    const Tensor x = random
                         .tensor({2, 12, layer.config().d_model}, layer.dtype(),
                                 [&] { return random.uniform(0, 1) < 0.5 ? -size : size; })
                         .to(layer.device());
    MambaState state = layer.make_state(2);
    for (double value : values(layer.forward(x, state))) ASSERT_TRUE(std::isfinite(value));
    for (double value : values(state.ssm)) ASSERT_TRUE(std::isfinite(value));
  });
}

// A product that takes long on a GPU writes a weight, and the layer is called at once: none of its
// kernels may have fetched that weight too early.
TEST_EACH(LayerWeights, AreThoseThatTheCallBeforeLeft, Device device) {
  LayerConfig config = config_of(8, 16, 4);
  config.d_inner = 2048;
  Layer layer = lively_layer(config, DType::f32, device, 1);
  Random random(2);
  const std::int64_t in = device.is_cuda() ? 4096 : 16;
  const Tensor x = random.normal_tensor({1, 1, 8}).to(device);
  const Tensor factor = random.normal_tensor({2048, in}, DType::f32, 0.1).to(device);
  const Tensor factors[2] = {random.normal_tensor({8, in}).to(device),
                             random.normal_tensor({8, in}).to(device)};
  Stream& stream = default_stream(device);
  const auto result = [&](int which, bool wait) {
    MambaState state = layer.make_state(1);
    Tensor y(x.shape(), DType::f32, device);
    Matmul writer;
    writer.x = factors[which];
    writer.weight = factor;
    writer.y = layer.weights().out_proj;
    run(writer, stream);
    if (wait) stream.synchronize();
    layer.forward(x, state, y, stream);
    stream.synchronize();
    return bits(y);
  };
  const auto first = result(0, true), second = result(1, true);
  EXPECT_NE(first, second);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(result(i % 2, false), i % 2 == 0 ? first : second) << i;
}

TEST(LayerErrors, NameTheOperandAndTouchNothing) {
  const Layer layer = lively_layer(config_of(8, 4, 3), DType::f32, Device::cpu(), 1);
  Random random(3);
  const Tensor x = random.normal_tensor({2, 5, 8});
  Tensor y = random.normal_tensor({2, 5, 8});
  const auto y_before = bits(y);
  MambaState state = layer.make_state(2);
  state.ssm = random.normal_tensor(state.ssm.shape());
  const MambaState before = state.clone();
  Stream& stream = default_stream();
  const auto forward = [&](ConstTensorView in, MambaState& s, TensorView out,
                           const LayerOptions& options = {}) {
    return [&layer, in, &s, out, &stream, options] { layer.forward(in, s, out, stream, options); };
  };
  expect_error<ArgumentError>("Layer::forward: x: expected [2, 5, 8], got [2, 5, 7]",
                              forward(x.view().columns(0, 7), state, y));
  expect_error<ArgumentError>("Layer::forward: x: expected 3 dimensions, got [10, 8]",
                              forward(x.view().reshape({10, 8}), state, y));
  expect_error<ArgumentError>("Layer::forward: x: expected a tensor, got none",
                              forward({}, state, y));
  expect_error<ArgumentError>("Layer::forward: y: expected [2, 5, 8], got [2, 4, 8]",
                              forward(x, state, y.view().steps(0, 4)));
  const Tensor x_bf16 = x.to(Device::cpu(), DType::bf16);
  expect_error<ArgumentError>("Layer::forward: x: expected f32, got bf16",
                              forward(x_bf16, state, y));
  MambaState three = layer.make_state(3);
  expect_error<ArgumentError>("Layer::forward: state.conv: expected [2, 16, 2], got [3, 16, 2]",
                              forward(x, three, y));
  MambaState other(config_of(8, 5, 3), 2, DType::f32);
  expect_error<ArgumentError>("Layer::forward: state.ssm: expected [2, 16, 4], got [2, 16, 5]",
                              forward(x, other, y));
  MambaState nothing;
  expect_error<ArgumentError>("Layer::forward: state.conv: expected a tensor, got none",
                              forward(x, nothing, y));
  LayerOptions bad_reset;
  const Tensor reset = Tensor::zeros({2, 4}, DType::i32);
  bad_reset.reset = reset;
  expect_error<ArgumentError>("Layer::forward: reset: expected [2, 5], got [2, 4]",
                              forward(x, state, y, bad_reset));
  LayerOptions bad_rows;
  const Tensor read = Tensor::from<std::int32_t>({0, 2}, {2});
  const Tensor write = Tensor::from<std::int32_t>({0, 1}, {2});
  bad_rows.rows.read = read;
  bad_rows.rows.write = write;
  expect_error<ArgumentError>("Layer::forward: rows.read: expected rows below 2, got 2",
                              forward(x, state, y, bad_rows));
  bad_rows.rows.write = {};
  expect_error<ArgumentError>("Layer::forward: rows.write: expected a tensor, got none",
                              forward(x, state, y, bad_rows));
  EXPECT_EQ(bits(y), y_before);
  EXPECT_EQ(bits(state.ssm), bits(before.ssm));
  EXPECT_EQ(bits(state.conv), bits(before.conv));
}

TEST(LayerErrors, WeightsMustFitTheConfig) {
  LayerConfig config = config_of(8, 4, 3);
  LayerWeights weights = random_layer_weights(config, DType::f32, 1);
  weights.x_proj = Tensor::zeros({9, 15}, DType::f32);
  expect_error<ArgumentError>("Layer: x_proj.weight: expected [9, 16], got [9, 15]",
                              [&] { Layer(config, std::move(weights)); });
  weights = random_layer_weights(config, DType::bf16, 1);
  weights.A_log = weights.A_log.to(Device::cpu(), DType::bf16);
  expect_error<ArgumentError>("Layer: A_log: expected f32, got bf16",
                              [&] { Layer(config, std::move(weights)); });
  weights = random_layer_weights(config, DType::f32, 1);
  weights.in_proj_bias = Tensor::zeros({32}, DType::f32);
  expect_error<ArgumentError>(
      "Layer: in_proj.bias: expected none (the config has it off), got [32]",
      [&] { Layer(config, std::move(weights)); });
  weights = random_layer_weights(config, DType::f32, 1);
  config.d_state = 257;
  EXPECT_THROW(Layer(config, std::move(weights)), ArgumentError);
}

TEST(LayerInitialisation, FollowsThePublishedRecipe) {
  LayerConfig config = config_of(64, 16, 4);
  config = config.resolved();
  const LayerWeights w = random_layer_weights(config, DType::f32, 5, 4);
  const auto bounds = [](const Tensor& tensor) {
    const std::vector<double> v = values(tensor);
    return std::pair(*std::min_element(v.begin(), v.end()), *std::max_element(v.begin(), v.end()));
  };
  const auto expect_uniform = [&](const Tensor& tensor, double bound, const std::string& name) {
    const auto [low, high] = bounds(tensor);
    EXPECT_GE(low, -bound * (1 + 1e-6)) << name;
    EXPECT_LE(high, bound * (1 + 1e-6)) << name;
    EXPECT_LT(low, -0.9 * bound) << name;
    EXPECT_GT(high, 0.9 * bound) << name;
  };
  expect_uniform(w.in_proj, 1 / 8.0, "in_proj");
  expect_uniform(w.x_proj, 1 / std::sqrt(128.0), "x_proj");
  expect_uniform(w.dt_proj, 1 / 2.0, "dt_proj");
  expect_uniform(w.conv_weight, 1 / 2.0, "conv_weight");
  expect_uniform(w.conv_bias, 1 / 2.0, "conv_bias");
  expect_uniform(w.out_proj, 1 / std::sqrt(128.0) / 2, "out_proj over sqrt(n_layer)");
  for (std::int64_t i = 0; i < w.A_log.count(); ++i) {
    ASSERT_FLOAT_EQ(w.A_log.data<float>()[i], std::log(static_cast<float>(i % 16 + 1)));
  }
  for (double d : values(w.D)) ASSERT_EQ(d, 1);
  double low = 1;
  double high = 0;
  for (double bias : values(w.dt_bias)) {
    const double dt = std::log1p(std::exp(bias));
    low = std::min(low, dt);
    high = std::max(high, dt);
  }
  EXPECT_GE(low, 1e-3 * (1 - 1e-5));
  EXPECT_LE(high, 0.1 * (1 + 1e-5));
  EXPECT_LT(low, 2e-3);
  EXPECT_GT(high, 0.05);
  const LayerWeights same = random_layer_weights(config, DType::f32, 5, 4);
  EXPECT_EQ(bits(same.in_proj), bits(w.in_proj));
  const LayerWeights other = random_layer_weights(config, DType::f32, 6, 4);
  EXPECT_NE(bits(other.in_proj), bits(w.in_proj));
}

}  // namespace
}  // namespace mamba
