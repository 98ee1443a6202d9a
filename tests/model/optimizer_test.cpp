// AdamW over a model: which weights decay, what a step is, and that it learns.
#include <mamba/optimizer.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include <mamba/train_ops.hpp>

#include "each.hpp"
#include "model/slopes.hpp"
#include "model/training_run.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::Random;
using testing::TrainingRun;
using testing::values;

TEST(Optimizer, MatricesDecayAndNothingElse) {
  LanguageModelConfig config = TrainingRun::config();
  config.layer.use_bias = true;
  config.layer.gated_norm = true;
  config.tie_embeddings = false;
  LanguageModel model = LanguageModel::random(config, 1);
  const LanguageModelWeights gradients = zero_gradients(config);
  std::vector<std::string> names, decaying;
  for (const Parameter& p : parameters(model, gradients)) {
    names.push_back(p.name);
    if (p.decay) decaying.push_back(p.name);
  }
  std::vector<std::string> expected{"backbone.embeddings.weight"};
  for (const char* layer : {"backbone.layers.0.mixer.", "backbone.layers.1.mixer."}) {
    for (const char* name :
         {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}) {
      expected.push_back(std::string(layer) + name);
    }
  }
  expected.push_back("lm_head.weight");
  EXPECT_EQ(decaying, expected);
  std::vector<std::string> all;
  static_cast<const LanguageModel&>(model).each_weight(
      [&](const std::string& name, const Tensor&) { all.push_back(name); });
  EXPECT_EQ(names, all);
}

TEST(Optimizer, OfALayerAndOfAStack) {
  LayerConfig config;
  config.d_model = 16;
  Layer layer = Layer::random(config, 1);
  const LayerWeights layer_gradients = zero_gradients(config);
  const std::vector<Parameter> of_layer = parameters(layer, layer_gradients);
  ASSERT_EQ(of_layer.size(), 9);
  EXPECT_EQ(of_layer.front().name, "in_proj.weight");
  EXPECT_EQ(of_layer.front().weight.data(), layer.weights().in_proj.view().data());
  EXPECT_EQ(of_layer.back().name, "out_proj.weight");

  const LanguageModelConfig model = TrainingRun::config();
  Stack stack(model.resolved(), std::move(random_model_weights(model, DType::f32, 1).stack));
  const LanguageModelWeights stack_gradients = zero_gradients(model);
  const std::vector<Parameter> of_stack = parameters(stack, stack_gradients.stack);
  ASSERT_EQ(of_stack.size(), 2 * 10 + 1);
  EXPECT_EQ(of_stack[1].name, "backbone.layers.0.mixer.in_proj.weight");
  EXPECT_EQ(of_stack.back().name, "backbone.norm_f.weight");
  StackWeights wrong;
  expect_error<ArgumentError>(
      "parameters: gradients: expected 2 layers and as many norms, got 0 and 0",
      [&] { parameters(stack, wrong); });
}

TEST(Optimizer, OnlyWhatHasAGradientIsTrained) {
  LanguageModel model = LanguageModel::random(TrainingRun::config(), 1);
  LanguageModelWeights gradients;
  gradients.stack.layers.resize(2);
  gradients.stack.norms.resize(2);
  EXPECT_TRUE(parameters(model, gradients).empty());
  gradients.stack.layers[1].D = Tensor::zeros({64}, DType::f32);
  const std::vector<Parameter> one = parameters(model, gradients);
  ASSERT_EQ(one.size(), 1);
  EXPECT_EQ(one[0].name, "backbone.layers.1.mixer.D");
}

// The step of two tensors is AdamWStep on each, with the norm of both.
TEST_EACH(Optimizer, AStepIsAdamWOfEveryParameterUnderTheirCommonNorm, Device device, DType dtype) {
  Random random(1);
  Tensor a = random.normal_tensor({30, 7}, dtype).to(device);
  Tensor b = random.normal_tensor({11}).to(device);
  const Tensor da = random.normal_tensor({30, 7}).to(device),
               db = random.normal_tensor({11}).to(device);
  Tensor master = a.to(device, DType::f32), b_alone = b.clone();
  Tensor m = Tensor::zeros({30, 7}, DType::f32, device), v = m.clone();
  Tensor bm = Tensor::zeros({11}, DType::f32, device), bv = bm.clone();
  Tensor stored = a.clone(), squares({1}, DType::f32, device);
  AdamWOptions options;
  options.max_norm = 2;
  AdamW optimizer({{"a", a, da, true}, {"b", b, db, false}}, options);
  Stream& stream = default_stream(device);
  for (std::int64_t step = 1; step <= 3; ++step) {
    optimizer.step(0.01f, stream);
    SumSquares sum;
    sum.x = da;
    sum.y = squares;
    run(sum, stream);
    sum.x = db;
    sum.accumulate = true;
    run(sum, stream);
    AdamWStep op;
    op.weight = master;
    op.stored = stored;
    op.gradient = da;
    op.m = m;
    op.v = v;
    op.squares = squares;
    op.max_norm = 2;
    op.learning_rate = 0.01f;
    op.beta2 = options.beta2;
    op.weight_decay = options.weight_decay;
    op.step = step;
    run(op, stream);
    op.weight = b_alone;
    op.stored = {};
    op.gradient = db;
    op.m = bm;
    op.v = bv;
    op.weight_decay = 0;
    run(op, stream);
  }
  stream.synchronize();
  EXPECT_EQ(bits(a), bits(stored));
  EXPECT_EQ(bits(b), bits(b_alone));
  double norm = 0;
  for (double g : values(da)) norm += g * g;
  for (double g : values(db)) norm += g * g;
  EXPECT_NEAR(optimizer.gradient_norm(stream), std::sqrt(norm), 1e-5 * std::sqrt(norm));
}

// More tensors than a launch takes, in every dtype, of whole parts and not, empty ones and some at
// odd addresses, beside each alone where it is aligned.
TEST_EACH(Optimizer, AStepOfManyTensorsIsAdamWOfEach, Device device) {
  struct One {
    Tensor weight, gradient, weight_alone, gradient_alone, master, m, v;
    static TensorView at(Tensor& whole) {  // of an even count from the second element on
      const std::int64_t count = whole.dim(0);
      return count > 0 && count % 2 == 0 ? whole.view().rows(1, count - 1) : whole.view();
    }
  };
  Stream& stream = default_stream(device);
  const auto alone = [&](const ConstTensorView& view) {
    Tensor result(view.shape(), view.dtype(), device);
    copy(view, result, stream);
    return result;
  };
  Random random(3);
  std::vector<One> all;
  std::vector<Parameter> parameters;
  double squares = 0;
  for (int i = 0; i < 131; ++i) {
    const std::int64_t count = std::vector<std::int64_t>{1, 6, 4096, 0, 4097, 8193, 12288}[i % 7];
    const DType dtype = i % 5 == 0 ? DType::bf16 : i % 3 == 0 ? DType::f16 : DType::f32;
    One one;
    one.weight = random.normal_tensor({count}, dtype).to(device);
    one.gradient = random.normal_tensor({count}).to(device);
    one.weight_alone = alone(One::at(one.weight));
    one.gradient_alone = alone(One::at(one.gradient));
    one.master = one.weight_alone.to(device, DType::f32);
    one.m = Tensor::zeros(one.master.shape(), DType::f32, device);
    one.v = one.m.clone();
    all.push_back(std::move(one));
  }
  for (One& one : all) {
    parameters.push_back({std::to_string(parameters.size()), One::at(one.weight),
                          One::at(one.gradient), parameters.size() % 3 == 0});
    for (double g : values(one.gradient_alone)) squares += g * g;
  }
  AdamWOptions options;
  options.max_norm = 0;
  AdamW optimizer(parameters, options);
  for (std::int64_t step = 1; step <= 2; ++step) {
    optimizer.step(0.01f, stream);
    for (std::size_t i = 0; i < all.size(); ++i) {
      One& one = all[i];
      const bool whole = one.weight.dtype() == DType::f32;
      AdamWStep op;
      op.weight = whole ? one.weight_alone : one.master;
      if (!whole) op.stored = one.weight_alone;
      op.gradient = one.gradient_alone;
      op.m = one.m;
      op.v = one.v;
      op.learning_rate = 0.01f;
      op.beta2 = options.beta2;
      op.weight_decay = parameters[i].decay ? options.weight_decay : 0;
      op.step = step;
      run(op, stream);
    }
  }
  stream.synchronize();
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(bits(One::at(all[i].weight)), bits(all[i].weight_alone)) << "tensor " << i;
  }
  EXPECT_NEAR(optimizer.gradient_norm(stream), std::sqrt(squares), 1e-5 * std::sqrt(squares));
}

// Steps far below a bf16 rounding add up in the master.
TEST_EACH(Optimizer, SmallStepsAreNotLostIn16Bits, Device device) {
  Tensor weight = Tensor::from<float>({1}, {1}).to(device, DType::bf16);
  const Tensor gradient = Tensor::from<float>({1}, {1}).to(device);
  AdamWOptions options;
  options.weight_decay = 0;
  AdamW optimizer({{"w", weight, gradient, false}}, options);
  for (int i = 0; i < 1000; ++i) optimizer.step(1e-4f, default_stream(device));
  default_stream(device).synchronize();
  EXPECT_NEAR(values(weight)[0], 0.9, 0.004);
}

TEST_EACH(Optimizer, AGradientThatIsNotFiniteIsNamedAndChangesNothing, Device device) {
  TrainingRun training(DType::f32, device);
  training.step();
  training.step();
  Tensor bad = training.gradients.stack.layers[1].x_proj.to(Device::cpu());
  bad.data<float>()[3] = std::numeric_limits<float>::quiet_NaN();
  Stream& stream = default_stream(device);
  copy(bad, training.gradients.stack.layers[1].x_proj, stream);
  std::vector<std::vector<unsigned char>> before;
  const auto& model = training.model;
  model.each_weight(
      [&](const std::string&, const Tensor& tensor) { before.push_back(bits(tensor)); });
  training.optimizer.step(0.1f, stream);
  EXPECT_FALSE(std::isfinite(training.optimizer.gradient_norm(stream)));
  EXPECT_EQ(training.optimizer.first_not_finite(stream), "backbone.layers.1.mixer.x_proj.weight");
  std::size_t i = 0;
  model.each_weight([&](const std::string& name, const Tensor& tensor) {
    EXPECT_EQ(bits(tensor), before[i++]) << name;
  });
}

TEST(LossScale, IsHalvedAfterAnOverflowAndDoubledAfter2000GoodSteps) {
  LossScale scale;
  EXPECT_EQ(scale.value, 65536);
  for (int i = 0; i < 1999; ++i) scale.update(true);
  EXPECT_EQ(scale.value, 65536);
  scale.update(true);
  EXPECT_EQ(scale.value, 131072);
  for (int i = 0; i < 1999; ++i) scale.update(true);
  scale.update(false);  // and the count begins again
  EXPECT_EQ(scale.value, 65536);
  for (int i = 0; i < 1999; ++i) scale.update(true);
  EXPECT_EQ(scale.value, 65536);
  scale.update(true);
  EXPECT_EQ(scale.value, 131072);
  for (int i = 0; i < 40; ++i) scale.update(false);
  EXPECT_EQ(scale.value, LossScale::smallest);
  for (int i = 0; i < 40 * 2000; ++i) scale.update(true);
  EXPECT_EQ(scale.value, LossScale::largest);
}

TEST_EACH(LossScale, AStepIsTheSameToTheBitWithAny, Device device) {
  std::vector<std::vector<unsigned char>> weights;
  for (const float scale : {1.0f, 65536.0f}) {
    Tensor weight = Tensor::from<float>({1, 2}, {2}).to(device);
    const Tensor gradient = Tensor::from<float>({0.3f * scale, 0.4f * scale}, {2}).to(device);
    AdamW optimizer({{"w", weight, gradient, false}});
    for (int i = 0; i < 3; ++i) optimizer.step(0.01f, default_stream(device), scale);
    default_stream(device).synchronize();
    optimizer.each_tensor(
        [&](const std::string&, ConstTensorView tensor) { weights.push_back(bits(tensor)); });
  }
  ASSERT_EQ(weights.size(), 6);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(weights[3 + i], weights[i]);
}

TEST_EACH(LossScale, AStepThatOverflowsChangesNothingAndDoesNotCount, Device device) {
  Tensor weight = Tensor::from<float>({1, 2}, {2}).to(device, DType::f16);
  Tensor gradient = Tensor::from<float>({3 * 65536, 4 * 65536}, {2}).to(device);
  Stream& stream = default_stream(device);
  AdamW optimizer({{"w", weight, gradient, false}});
  LossScale scale;
  optimizer.step(0.01f, stream, scale.value);
  EXPECT_EQ(optimizer.gradient_norm(stream), 5);
  EXPECT_TRUE(optimizer.update_loss_scale(scale, stream));
  EXPECT_EQ(optimizer.steps(), 1);
  EXPECT_EQ(scale.good_steps, 1);
  std::vector<std::vector<unsigned char>> before, after;
  optimizer.each_tensor(
      [&](const std::string&, ConstTensorView tensor) { before.push_back(bits(tensor)); });
  copy(Tensor::from<float>({1, std::numeric_limits<float>::infinity()}, {2}), gradient, stream);
  optimizer.step(0.01f, stream, scale.value);
  EXPECT_FALSE(optimizer.update_loss_scale(scale, stream));
  EXPECT_EQ(optimizer.steps(), 1);
  EXPECT_EQ(scale.value, 32768);
  optimizer.each_tensor(
      [&](const std::string&, ConstTensorView tensor) { after.push_back(bits(tensor)); });
  EXPECT_EQ(after, before);
  expect_error<ArgumentError>("AdamW::step: loss_scale: expected a finite number above 0, got 0",
                              [&] { optimizer.step(0.01f, stream, 0); });
}

// A loss over so many tokens that its gradient lies below the smallest f16.
TEST_EACH(LossScale, SmallGradientsAreNotLostInF16, Device device) {
  const auto gradient_of = [&](DType dtype, float scale) {
    const LanguageModel model = LanguageModel::random(TrainingRun::config(), 1, dtype, device);
    LanguageModelWeights gradients = zero_gradients(model.config(), device);
    StackState state = model.make_state(2);
    const Tensor ids = Tensor::from<std::int32_t>({1, 2, 3, 4, 5, 6}, {2, 3}).to(device);
    Tensor logits({2, 3, TrainingRun::vocab}, DType::f32, device);
    Tensor dlogits(logits.shape(), dtype, device);
    LanguageModelTape tape;
    LanguageModelOptions options;
    options.tape = &tape;
    Stream& stream = default_stream(device);
    TokenLoss loss;
    model.forward(ids, state, Logits::all(logits), stream, options);
    loss.run(logits, ids, {std::int64_t{1} << 30, dlogits, scale}, stream);
    model.backward(tape, dlogits, nullptr, gradients, stream);
    stream.synchronize();
    std::vector<double> list = values(gradients.stack.layers[0].out_proj);
    for (double& value : list) value /= scale;
    return list;
  };
  const std::vector<double> exact = gradient_of(DType::f32, 1);
  EXPECT_EQ(testing::relative_error(gradient_of(DType::f16, 1), exact), 1);  // all lost
  EXPECT_LE(testing::relative_error(gradient_of(DType::f16, 0x1p24f), exact),
            2 * testing::gradient_bound(DType::f16));
}

TEST(Optimizer, WarmupAndCosine) {
  EXPECT_FLOAT_EQ(warmup_cosine(1, 10, 110, 1, 0.1f), 0.1f);
  EXPECT_FLOAT_EQ(warmup_cosine(5, 10, 110, 1, 0.1f), 0.5f);
  EXPECT_FLOAT_EQ(warmup_cosine(10, 10, 110, 1, 0.1f), 1);
  EXPECT_FLOAT_EQ(warmup_cosine(60, 10, 110, 1, 0.1f), 0.55f);
  EXPECT_FLOAT_EQ(warmup_cosine(110, 10, 110, 1, 0.1f), 0.1f);
  EXPECT_FLOAT_EQ(warmup_cosine(500, 10, 110, 1, 0.1f), 0.1f);
  EXPECT_FLOAT_EQ(warmup_cosine(1, 0, 0, 1, 0.1f), 0.1f);
}

// A model that counts, from state to state across truncated pieces: without memory two of the four
// rows could not be told apart.
TEST_EACH(Training, ATinyModelLearnsToCount, MixerKind mixer, Device device,
          testing::OneOf<DType::f32, DType::bf16> dtype) {
  TrainingRun training(dtype, device, mixer);
  const float first = training.step();
  EXPECT_NEAR(first, std::log(16.0), 0.2);
  float last = first;
  for (int i = 0; i < 80; ++i) last = training.step();
  EXPECT_LT(last, 0.2) << name_of(dtype) << " on " << device.name();
}

TEST(Optimizer, Errors) {
  Tensor a({3}, DType::f32), b({2}, DType::f32), ids({3}, DType::i32);
  const auto expect = [&](const std::string& text, std::vector<Parameter> list) {
    expect_error<ArgumentError>("AdamW: " + text, [&] { AdamW optimizer(std::move(list)); });
  };
  expect("parameters: expected at least one, got none", {});
  expect("gradient of w: expected [3], got [2]", {{"w", a, b, true}});
  expect("w: expected f32 or bf16 or f16, got i32", {{"w", ids, a, true}});
  expect("w: expected every name once, got it twice", {{"w", a, a, true}, {"w", b, b, true}});
}

}  // namespace
}  // namespace mamba
