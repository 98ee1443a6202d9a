// LanguageModel::backward and Stack::backward: against finite differences of the model in double,
// cut into pieces, recomputed, refused.
#include <mamba/language_model.hpp>
#include <mamba/train_ops.hpp>

#include "each.hpp"
#include "model/model_reference.hpp"
#include "model/slopes.hpp"
#include "ops/sequence_reference.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::expect_slopes;
using testing::gradient_bound;
using testing::Random;
using testing::relative_error;
using testing::values;

LanguageModelConfig small_config(bool tied, MixerKind mixer = MixerKind::mamba1) {
  LanguageModelConfig config;
  config.layer.mixer = mixer;
  if (mixer == MixerKind::mamba2) {
    config.layer.head_dim = 4;
    config.layer.groups = 3;
  }
  config.layer.d_model = 12;
  config.layer.d_state = 6;
  config.n_layer = 2;
  config.vocab_size = 21;  // padded to 24
  config.tie_embeddings = tied;
  return config;
}

// Embeddings of size 1, so that the residual stream is not lost in epsilon.
LanguageModel lively_model(const LanguageModelConfig& config, DType dtype, Device device) {
  LanguageModel model = LanguageModel::random(config, 3, dtype, device);
  Random random(5);
  model.each_mutable_weight([&](const std::string& name, Tensor& tensor) {
    if (name == "backbone.embeddings.weight" || name.find("norm") != std::string::npos) {
      tensor = random.normal_tensor(tensor.shape(), tensor.dtype()).to(device);
    }
  });
  return model;
}

struct Inputs {
  std::int64_t batch, time;
  std::vector<std::int32_t> ids, resets;
  Tensor id_tensor, reset, dlogits;
  StackState state, dstate;

  Inputs(const LanguageModel& model, std::int64_t batch_size, std::int64_t steps)
      : batch(batch_size),
        time(steps),
        state(model.make_state(batch)),
        dstate(model.make_state(batch)) {
    Random random(9);
    const Device device = model.device();
    const std::int64_t vocab = model.config().vocab_size;
    for (std::int64_t i = 0; i < batch * time; ++i) {
      ids.push_back(static_cast<std::int32_t>(random.integer(0, vocab - 1)));
      resets.push_back(random.uniform(0, 1) < 0.2 ? 1 : 0);
    }
    id_tensor = Tensor::from(ids, {batch, time}).to(device);
    reset = Tensor::from(resets, {batch, time}).to(device);
    dlogits = random.normal_tensor({batch, time, vocab}, model.dtype()).to(device);
    for (StackState* each : {&state, &dstate}) {
      for (MambaState& layer : each->layers) {
        layer.conv = random.normal_tensor(layer.conv.shape(), model.dtype()).to(device);
        layer.ssm = random.normal_tensor(layer.ssm.shape()).to(device);
      }
    }
  }
};

struct Outputs {
  Tensor logits;
  StackState dstate;
  LanguageModelWeights gradients;
};

Outputs run_in_pieces(const LanguageModel& model, const Inputs& inputs,
                      const std::vector<std::int64_t>& pieces, bool recompute = false) {
  Stream& stream = default_stream(model.device());
  const std::int64_t vocab = model.config().vocab_size;
  Outputs out{Tensor({inputs.batch, inputs.time, vocab}, DType::f32, model.device()),
              inputs.dstate.clone(), zero_gradients(model.config(), model.device())};
  std::vector<LanguageModelTape> tapes(pieces.size());
  StackState state = inputs.state.clone();
  std::int64_t first = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    tapes[i].stack.recompute = recompute;
    LanguageModelOptions options;
    options.tape = &tapes[i];
    options.reset = inputs.reset.view().columns(first, pieces[i]);
    Tensor logits({inputs.batch, pieces[i], vocab}, DType::f32, model.device());
    model.forward(inputs.id_tensor.view().columns(first, pieces[i]), state, Logits::all(logits),
                  stream, options);
    copy(logits, out.logits.view().steps(first, pieces[i]), stream);
    stream.synchronize();
    first += pieces[i];
  }
  BackwardOptions options;
  for (std::size_t i = pieces.size(); i-- > 0;) {
    first -= pieces[i];
    model.backward(tapes[i], inputs.dlogits.view().steps(first, pieces[i]), &out.dstate,
                   out.gradients, stream, options);
    options.accumulate = true;
  }
  stream.synchronize();
  return out;
}

// f(name, tensor) for every gradient.
template <class F>
void each_gradient(const LanguageModel& model, const Outputs& out, F f) {
  for (std::size_t i = 0; i < out.dstate.layers.size(); ++i) {
    f("dconv " + std::to_string(i), out.dstate.layers[i].conv);
    f("dssm " + std::to_string(i), out.dstate.layers[i].ssm);
  }
  LanguageModelWeights::each(
      out.gradients, model.config(), DType::f32,
      [&](const std::string& name, const Tensor& tensor, const Shape&, DType) { f(name, tensor); });
}

TEST_EACH(ModelGrad, MatchesFiniteDifferencesOfTheReference, MixerKind mixer, Device device,
          DType dtype) {
  for (const bool tied : {true, false}) {
    SCOPED_TRACE(tied ? "tied" : "not tied");
    const LanguageModel model = lively_model(small_config(tied, mixer), dtype, device);
    const Inputs inputs(model, 2, 6);
    const Outputs out = run_in_pieces(model, inputs, {6});
    testing::ModelReference reference(model);
    std::vector<std::vector<double>> conv, ssm;
    for (const MambaState& layer : inputs.state.layers) {
      conv.push_back(values(layer.conv));
      ssm.push_back(values(layer.ssm));
    }
    const std::vector<double> dlogits = values(inputs.dlogits);
    std::vector<std::vector<double>> dconv, dssm;
    for (const MambaState& layer : inputs.dstate.layers) {
      dconv.push_back(values(layer.conv));
      dssm.push_back(values(layer.ssm));
    }
    const auto loss = [&] {
      auto last_conv = conv, last_ssm = ssm;
      const std::vector<double> logits =
          reference.forward(inputs.ids, inputs.batch, inputs.resets, last_conv, last_ssm);
      double sum = 0;
      for (std::size_t i = 0; i < logits.size(); ++i) sum += dlogits[i] * logits[i];
      for (std::size_t l = 0; l < conv.size(); ++l) {
        for (std::size_t i = 0; i < conv[l].size(); ++i) sum += dconv[l][i] * last_conv[l][i];
        for (std::size_t i = 0; i < ssm[l].size(); ++i) sum += dssm[l][i] * last_ssm[l][i];
      }
      return sum;
    };
    const double bound = 2 * gradient_bound(dtype);  // two layers
    for (std::size_t l = 0; l < conv.size(); ++l) {
      expect_slopes("dconv", conv[l], out.dstate.layers[l].conv, loss, bound);
      expect_slopes("dssm", ssm[l], out.dstate.layers[l].ssm, loss, bound);
    }
    LanguageModelWeights::each(
        out.gradients, model.config(), DType::f32,
        [&](const std::string& name, const Tensor& tensor, const Shape&, DType) {
          expect_slopes(name, reference.weight(name), tensor, loss, bound);
        });
    // Rows of padding are no ids.
    for (double value : values(out.gradients.embedding.view().rows(21, 3))) EXPECT_EQ(value, 0);
  }
}

TEST_EACH(ModelGrad, CutAnywhereEqualsTheWhole, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = lively_model(small_config(true, mixer), dtype, device);
  const Inputs inputs(model, 2, 40);
  const Outputs whole = run_in_pieces(model, inputs, {40});
  for (const std::vector<std::int64_t>& pieces :
       {std::vector<std::int64_t>{1, 39}, {0, 40}, {33, 7}, {10, 10, 20}}) {
    const Outputs cut = run_in_pieces(model, inputs, pieces);
    std::vector<std::vector<double>> all;
    each_gradient(model, whole,
                  [&](const std::string&, const Tensor& tensor) { all.push_back(values(tensor)); });
    std::size_t i = 0;
    each_gradient(model, cut, [&](const std::string& name, const Tensor& tensor) {
      EXPECT_LE(relative_error(values(tensor), all[i++]), 2 * gradient_bound(dtype)) << name;
    });
  }
}

TEST_EACH(ModelGrad, SameBitsTwiceAndWithRecompute, MixerKind mixer, Device device, DType dtype) {
  const LanguageModel model = lively_model(small_config(false, mixer), dtype, device);
  const Inputs inputs(model, 2, 40);
  const Outputs first = run_in_pieces(model, inputs, {40});
  for (const bool recompute : {false, true}) {
    const Outputs second = run_in_pieces(model, inputs, {40}, recompute);
    std::vector<std::vector<unsigned char>> all;
    each_gradient(model, first,
                  [&](const std::string&, const Tensor& tensor) { all.push_back(bits(tensor)); });
    std::size_t i = 0;
    each_gradient(model, second, [&](const std::string& name, const Tensor& tensor) {
      EXPECT_EQ(bits(tensor), all[i++]) << name;
    });
    EXPECT_EQ(bits(first.logits), bits(second.logits));
  }
}

// dx of a stack is the gradient of the residual stream at its start; dy and dx may share memory.
TEST_EACH(StackGrad, DxMatchesFiniteDifferencesAndMayBeDy, MixerKind mixer) {
  const LanguageModel model = lively_model(small_config(true, mixer), DType::f32, Device::cpu());
  const Stack& stack = model.stack();
  Random random(2);
  const Shape shape{2, 5, 12};
  const Tensor x = random.normal_tensor(shape), dy = random.normal_tensor(shape);
  Tensor y(shape, DType::f32), dx(shape, DType::f32);
  StackState state = model.make_state(2);
  StackTape tape;
  StackOptions options;
  options.tape = &tape;
  StackWeights gradients = std::move(zero_gradients(model.config()).stack);
  Stream& stream = default_stream();
  stack.forward(x, state, y, stream, options);
  stack.backward(tape, dy, nullptr, dx, gradients, stream);
  state.reset();
  stack.forward(x, state, y, stream, options);
  Tensor both = dy.clone();
  stack.backward(tape, both, nullptr, both, gradients, stream);
  EXPECT_EQ(bits(both), bits(dx));

  const std::vector<double> weights = values(dy), start = values(x);
  const std::vector<double> slopes = values(dx);
  for (std::size_t i = 0; i < start.size(); i += 7) {
    double loss[2];
    for (int side = 0; side < 2; ++side) {
      Tensor moved = x.clone();
      moved.data<float>()[i] += side == 0 ? 1.0f / 256 : -1.0f / 256;
      StackState fresh = model.make_state(2);
      const std::vector<double> out = values(stack.forward(moved, fresh));
      loss[side] = 0;
      for (std::size_t k = 0; k < out.size(); ++k) loss[side] += weights[k] * out[k];
    }
    // The step's square and the roundings of f32 outputs over it: 2^-16 + 2^-24 60 / 2^-7.
    EXPECT_NEAR(slopes[i], (loss[0] - loss[1]) * 128, 2e-3 * (1 + std::abs(slopes[i])));
  }
}

TEST(ModelGrad, Errors) {
  const LanguageModel model = LanguageModel::random(small_config(true), 1);
  const LanguageModel other = LanguageModel::random(small_config(true), 2);
  const Inputs inputs(model, 2, 5);
  Stream& stream = default_stream();
  LanguageModelTape tape;
  StackState state = model.make_state(2);
  LanguageModelWeights gradients = zero_gradients(model.config());
  Tensor logits({2, 5, 21}, DType::f32), wrong({2, 4, 21}, DType::f32);
  const auto backward = [&](const LanguageModel& with, const Tensor& dlogits) {
    with.backward(tape, dlogits, nullptr, gradients, stream);
  };
  expect_error<ArgumentError>(
      "LanguageModel::backward: tape: expected a forward run that no backward has used, got none",
      [&] { backward(model, inputs.dlogits); });
  LanguageModelOptions options;
  options.tape = &tape;
  model.forward(inputs.id_tensor, state, Logits::all(logits), stream, options);
  expect_error<ArgumentError>(
      "LanguageModel::backward: dlogits: expected [2, 5, 21], got [2, 4, 21]",
      [&] { backward(model, wrong); });
  expect_error<ArgumentError>(
      "Stack::backward: tape: expected a forward run of this layer, got one of another",
      [&] { backward(other, inputs.dlogits); });
  const auto expect_refused = [&](const std::string& text, LanguageModelWeights& bad) {
    expect_error<ArgumentError>(
        text, [&] { model.backward(tape, inputs.dlogits, nullptr, bad, stream); });
  };
  LanguageModelWeights bad = zero_gradients(model.config());
  bad.embedding = Tensor::zeros({21, 12}, DType::f32);
  expect_refused(
      "LanguageModel::backward: gradients.embeddings.weight: expected [24, 12], got [21, 12]", bad);
  LanguageModelWeights few;
  expect_refused(
      "LanguageModel::backward: gradients: expected 2 layers and as many norms, got 0 and 0", few);
  LanguageModelWeights half = zero_gradients(model.config());
  half.stack.norm_f = Tensor::zeros({12}, DType::bf16);
  expect_refused("LanguageModel::backward: gradients.norm_f.weight: expected f32, got bf16", half);
  backward(model, inputs.dlogits);  // the tape has survived them all
  expect_error<ArgumentError>(
      "LanguageModel::backward: tape: expected a forward run that no backward has used, got none",
      [&] { backward(model, inputs.dlogits); });
}

}  // namespace
}  // namespace mamba
