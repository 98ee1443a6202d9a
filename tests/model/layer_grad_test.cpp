// Layer::backward against finite differences of the layer in double, and what it promises about
// cuts, resets, tapes and bits.
#include <mamba/layer.hpp>

#include <cmath>
#include <limits>
#include <new>

#include "core/allocations.hpp"
#include "each.hpp"
#include "model/layer_reference.hpp"
#include "model/layer_variants.hpp"
#include "model/slopes.hpp"
#include "ops/sequence_reference.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::config_of;
using testing::expect_error;
using testing::expect_slopes;
using testing::gradient_bound;
using testing::lively_layer;
using testing::Random;
using testing::relative_error;
using testing::values;
using testing::variants;

// One run and the gradients that come in from outside; on the layer's device.
struct Inputs {
  Tensor x, dy, reset;
  MambaState state, dstate;

  Inputs(const Layer& layer, std::int64_t batch, std::int64_t time, bool with_reset,
         std::uint64_t seed = 3) {
    Random random(seed);
    const Shape shape{batch, time, layer.config().d_model};
    const Device device = layer.device();
    x = random.normal_tensor(shape, layer.dtype()).to(device);
    dy = random.normal_tensor(shape, layer.dtype()).to(device);
    for (MambaState* each : {&state, &dstate}) {
      *each = layer.make_state(batch);
      each->conv = random.normal_tensor(each->conv.shape(), layer.dtype()).to(device);
      each->ssm = random.normal_tensor(each->ssm.shape()).to(device);
    }
    if (!with_reset) return;
    std::vector<std::int32_t> flags(static_cast<std::size_t>(batch * time));
    for (auto& flag : flags) flag = random.uniform(0, 1) < 0.2 ? 1 : 0;
    reset = Tensor::from(flags, {batch, time}).to(device);
  }
};

struct Outputs {
  Tensor y, dx;
  MambaState dstate;
  LayerWeights gradients;
};

Outputs run_layer(const Layer& layer, const Inputs& inputs, LayerTape& tape) {
  Stream& stream = default_stream(layer.device());
  Outputs out{Tensor(inputs.x.shape(), layer.dtype(), layer.device()),
              Tensor(inputs.x.shape(), layer.dtype(), layer.device()), inputs.dstate.clone(),
              zero_gradients(layer.config(), layer.device())};
  MambaState state = inputs.state.clone();
  LayerOptions options;
  options.tape = &tape;
  options.reset = inputs.reset;
  layer.forward(inputs.x, state, out.y, stream, options);
  layer.backward(tape, inputs.dy, &out.dstate, out.dx, out.gradients, stream);
  stream.synchronize();
  return out;
}

Outputs run_layer(const Layer& layer, const Inputs& inputs) {
  LayerTape tape;
  return run_layer(layer, inputs, tape);
}

// f(name, tensor) for every gradient, of weights and of what goes out.
template <class F>
void each_gradient(const Layer& layer, const Outputs& out, F f) {
  f("dx", out.dx);
  f("dconv", out.dstate.conv);
  f("dssm", out.dstate.ssm);
  LayerWeights::each(out.gradients, layer.config(), DType::f32,
                     [&](const char* name, const Tensor& tensor, const Shape&, DType) {
                       f(std::string("d ") + name, tensor);
                     });
}

void expect_same_bits(const Layer& layer, const Outputs& a, const Outputs& b) {
  std::vector<std::vector<unsigned char>> all;
  each_gradient(layer, a,
                [&](const std::string&, const Tensor& tensor) { all.push_back(bits(tensor)); });
  std::size_t i = 0;
  each_gradient(layer, b, [&](const std::string& name, const Tensor& tensor) {
    EXPECT_EQ(bits(tensor), all[i++]) << name;
  });
}

void expect_close(const Layer& layer, const Outputs& a, const Outputs& b, double bound) {
  std::vector<std::vector<double>> all;
  each_gradient(layer, a,
                [&](const std::string&, const Tensor& tensor) { all.push_back(values(tensor)); });
  std::size_t i = 0;
  each_gradient(layer, b, [&](const std::string& name, const Tensor& tensor) {
    EXPECT_LE(relative_error(values(tensor), all[i++]), bound) << name;
  });
}

// The loss whose gradient backward gives, in double.
struct Loss {
  testing::LayerReference layer;
  std::vector<double> x, conv, ssm, dy, dconv, dssm;
  std::vector<std::int32_t> reset;
  std::int64_t batch;

  Loss(const Layer& of, const Inputs& in)
      : layer(of),
        x(values(in.x)),
        conv(values(in.state.conv)),
        ssm(values(in.state.ssm)),
        dy(values(in.dy)),
        dconv(values(in.dstate.conv)),
        dssm(values(in.dstate.ssm)),
        reset(testing::optional_integers(in.reset)),
        batch(in.x.dim(0)) {}

  double operator()() const {
    std::vector<double> last_conv = conv, last_ssm = ssm;
    const std::vector<double> y = layer.forward(x, batch, reset, last_conv, last_ssm);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
    for (std::size_t i = 0; i < conv.size(); ++i) sum += dconv[i] * last_conv[i];
    for (std::size_t i = 0; i < ssm.size(); ++i) sum += dssm[i] * last_ssm[i];
    return sum;
  }
};

TEST_EACH(LayerGrad, MatchesFiniteDifferencesOfTheReference, Device device, DType dtype) {
  for (const auto& variant : variants()) {
    for (const bool with_reset : {false, true}) {
      SCOPED_TRACE(variant.name);
      const Layer layer = lively_layer(variant.config, dtype, device, 7);
      const Inputs inputs(layer, 2, 6, with_reset);
      const Outputs out = run_layer(layer, inputs);
      Loss loss(layer, inputs);
      const double bound = gradient_bound(dtype);
      expect_slopes("dx", loss.x, out.dx, loss, bound);
      expect_slopes("dconv", loss.conv, out.dstate.conv, loss, bound);
      expect_slopes("dssm", loss.ssm, out.dstate.ssm, loss, bound);
      LayerWeights::each(out.gradients, layer.config(), DType::f32,
                         [&](const char* name, const Tensor& tensor, const Shape&, DType) {
                           expect_slopes(name, loss.layer.weights[name], tensor, loss, bound);
                         });
    }
  }
}

TEST_EACH(LayerGrad, ForwardWithATapeGivesTheSameBits, Device device) {
  for (const auto& variant : variants()) {
    const Layer layer = lively_layer(variant.config, DType::f32, device, 7);
    const Inputs inputs(layer, 2, 40, true);
    const Outputs out = run_layer(layer, inputs);
    MambaState state = inputs.state.clone();
    Tensor y(inputs.x.shape(), layer.dtype(), device);
    LayerOptions options;
    options.reset = inputs.reset;
    layer.forward(inputs.x, state, y, default_stream(device), options);
    default_stream(device).synchronize();
    EXPECT_EQ(bits(y), bits(out.y)) << variant.name;
  }
}

TEST_EACH(LayerGrad, SameBitsTwiceAndWithRecompute, Device device, DType dtype) {
  for (const auto& variant : variants()) {
    SCOPED_TRACE(variant.name);
    const Layer layer = lively_layer(variant.config, dtype, device, 7);
    const Inputs inputs(layer, 3, 50, true);
    LayerTape tape;
    const Outputs first = run_layer(layer, inputs, tape);
    expect_same_bits(layer, first, run_layer(layer, inputs, tape));
    LayerTape again;
    again.recompute = true;
    expect_same_bits(layer, first, run_layer(layer, inputs, again));
    EXPECT_LT(again.bytes(), tape.bytes() / 2);
  }
}

// Pieces forward in order, backward in reverse, the state's gradient flowing from one to the other
// and the weights' adding up: one long backward.
Outputs run_in_pieces(const Layer& layer, const Inputs& inputs,
                      const std::vector<std::int64_t>& pieces) {
  Stream& stream = default_stream(layer.device());
  Outputs out{Tensor(inputs.x.shape(), layer.dtype(), layer.device()),
              Tensor(inputs.x.shape(), layer.dtype(), layer.device()), inputs.dstate.clone(),
              zero_gradients(layer.config(), layer.device())};
  std::vector<LayerTape> tapes(pieces.size());
  MambaState state = inputs.state.clone();
  std::int64_t first = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    LayerOptions options;
    options.tape = &tapes[i];
    if (inputs.reset) options.reset = inputs.reset.view().columns(first, pieces[i]);
    layer.forward(inputs.x.view().steps(first, pieces[i]), state,
                  out.y.view().steps(first, pieces[i]), stream, options);
    first += pieces[i];
  }
  BackwardOptions options;
  for (std::size_t i = pieces.size(); i-- > 0;) {
    first -= pieces[i];
    layer.backward(tapes[i], inputs.dy.view().steps(first, pieces[i]), &out.dstate,
                   out.dx.view().steps(first, pieces[i]), out.gradients, stream, options);
    options.accumulate = true;
  }
  stream.synchronize();
  return out;
}

TEST_EACH(LayerGrad, CutAnywhereEqualsTheWhole, Device device, DType dtype) {
  for (const auto& variant : variants()) {
    SCOPED_TRACE(variant.name);
    const Layer layer = lively_layer(variant.config, dtype, device, 7);
    const Inputs inputs(layer, 2, 40, true);
    const Outputs whole = run_layer(layer, inputs);
    for (const std::vector<std::int64_t>& pieces :
         {std::vector<std::int64_t>{0, 40}, {1, 39}, {3, 37}, {33, 7}, {10, 10, 0, 20}}) {
      expect_close(layer, whole, run_in_pieces(layer, inputs, pieces), gradient_bound(dtype));
    }
  }
}

TEST_EACH(LayerGrad, WithoutAStateGradientNothingFlows, Device device) {
  const Layer layer = lively_layer(config_of(12, 8, 4), DType::f32, device, 7);
  Inputs inputs(layer, 2, 20, false);
  inputs.dstate.reset();
  const Outputs zero = run_layer(layer, inputs);
  LayerTape tape;
  MambaState state = inputs.state.clone();
  Outputs none{Tensor(inputs.x.shape(), DType::f32, device),
               Tensor(inputs.x.shape(), DType::f32, device), zero.dstate.clone(),
               zero_gradients(layer.config(), device)};
  LayerOptions options;
  options.tape = &tape;
  Stream& stream = default_stream(device);
  layer.forward(inputs.x, state, none.y, stream, options);
  layer.backward(tape, inputs.dy, nullptr, none.dx, none.gradients, stream);
  stream.synchronize();
  expect_same_bits(layer, zero, none);
}

TEST_EACH(LayerGrad, TwoHalfBatchesAccumulatedEqualOne, Device device, DType dtype) {
  const Layer layer = lively_layer(config_of(24, 16, 4), dtype, device, 7);
  const Inputs inputs(layer, 4, 20, false);
  const Outputs whole = run_layer(layer, inputs);
  LayerWeights gradients = zero_gradients(layer.config(), device);
  Stream& stream = default_stream(device);
  const Tensor rows[] = {Tensor::from<std::int32_t>({0, 1}, {2}).to(device),
                         Tensor::from<std::int32_t>({2, 3}, {2}).to(device)};
  for (std::int64_t half = 0; half < 2; ++half) {
    LayerTape tape;
    LayerOptions options;
    options.tape = &tape;
    MambaState state = inputs.state.gather(rows[half]);
    MambaState dstate = inputs.dstate.gather(rows[half]);
    Tensor y({2, 20, 24}, dtype, device);
    layer.forward(inputs.x.view().rows(2 * half, 2), state, y, stream, options);
    BackwardOptions backward;
    backward.accumulate = half > 0;
    layer.backward(tape, inputs.dy.view().rows(2 * half, 2), &dstate, {}, gradients, stream,
                   backward);
    stream.synchronize();
  }
  std::vector<std::vector<double>> all;
  LayerWeights::each(whole.gradients, layer.config(), DType::f32,
                     [&](const char*, const Tensor& tensor, const Shape&, DType) {
                       all.push_back(values(tensor));
                     });
  std::size_t i = 0;
  LayerWeights::each(gradients, layer.config(), DType::f32,
                     [&](const char* name, const Tensor& tensor, const Shape&, DType) {
                       EXPECT_LE(relative_error(values(tensor), all[i++]), gradient_bound(dtype))
                           << name;
                     });
}

// A NaN in one sequence reaches nothing of the next, and the state before a reset gets no gradient.
TEST_EACH(LayerGrad, NothingCrossesAReset, Device device) {
  const Layer layer = lively_layer(config_of(12, 8, 4), DType::f32, device, 7);
  Inputs inputs(layer, 1, 30, false);
  std::vector<std::int32_t> flags(30, 0);
  flags[13] = 1;
  inputs.reset = Tensor::from(flags, {1, 30}).to(device);
  const Outputs clean = run_layer(layer, inputs);
  Tensor dy = inputs.dy.to(Device::cpu());
  for (std::int64_t i = 13 * 12; i < 30 * 12; ++i) {
    dy.data<float>()[i] = std::numeric_limits<float>::quiet_NaN();
  }
  inputs.dy = dy.to(device);
  const Outputs poisoned = run_layer(layer, inputs);
  EXPECT_EQ(values(poisoned.dx.view().steps(0, 13)), values(clean.dx.view().steps(0, 13)));
  EXPECT_EQ(values(poisoned.dstate.ssm), values(clean.dstate.ssm));
  EXPECT_EQ(values(poisoned.dstate.conv), values(clean.dstate.conv));
  for (double value : values(poisoned.dx.view().steps(13, 17))) EXPECT_TRUE(std::isnan(value));
}

TEST_EACH(LayerGrad, AbsentGradientsAreNotComputedAndChangeNothing, Device device) {
  for (const auto& variant : variants()) {
    const Layer layer = lively_layer(variant.config, DType::f32, device, 7);
    const Inputs inputs(layer, 2, 20, false);
    const Outputs all = run_layer(layer, inputs);
    LayerTape tape;
    LayerOptions options;
    options.tape = &tape;
    MambaState state = inputs.state.clone(), dstate = inputs.dstate.clone();
    Tensor y(inputs.x.shape(), DType::f32, device), dx(inputs.x.shape(), DType::f32, device);
    LayerWeights frozen;
    Stream& stream = default_stream(device);
    layer.forward(inputs.x, state, y, stream, options);
    layer.backward(tape, inputs.dy, &dstate, dx, frozen, stream);
    stream.synchronize();
    EXPECT_EQ(bits(dstate.ssm), bits(all.dstate.ssm));
    EXPECT_EQ(bits(dstate.conv), bits(all.dstate.conv));
    EXPECT_EQ(bits(dx), bits(all.dx));
  }
}

TEST_EACH(LayerGrad, DxMayBeDy, Device device) {
  for (const auto& variant : variants()) {
    const Layer layer = lively_layer(variant.config, DType::f32, device, 7);
    const Inputs inputs(layer, 2, 20, false);
    const Outputs apart = run_layer(layer, inputs);
    LayerTape tape;
    LayerOptions options;
    options.tape = &tape;
    MambaState state = inputs.state.clone(), dstate = inputs.dstate.clone();
    Tensor y(inputs.x.shape(), DType::f32, device), both = inputs.dy.clone();
    LayerWeights gradients = zero_gradients(layer.config(), device);
    Stream& stream = default_stream(device);
    layer.forward(inputs.x, state, y, stream, options);
    layer.backward(tape, both, &dstate, both, gradients, stream);
    stream.synchronize();
    EXPECT_EQ(bits(both), bits(apart.dx)) << variant.name;
    EXPECT_EQ(bits(gradients.out_proj), bits(apart.gradients.out_proj)) << variant.name;
  }
}

TEST_EACH(LayerGrad, NothingToDo, Device device) {
  const Layer layer = lively_layer(config_of(12, 8, 4), DType::f32, device, 7);
  const Inputs inputs(layer, 2, 0, false);
  const Outputs out = run_layer(layer, inputs);
  EXPECT_EQ(bits(out.dstate.ssm), bits(inputs.dstate.ssm));
  EXPECT_EQ(bits(out.dstate.conv), bits(inputs.dstate.conv));
  LayerWeights::each(out.gradients, layer.config(), DType::f32,
                     [&](const char* name, const Tensor& tensor, const Shape&, DType) {
                       for (double value : values(tensor)) EXPECT_EQ(value, 0) << name;
                     });
}

// Per token what LayerTape says, and never a state per step.
TEST(LayerGrad, ATapeIsAsLargeAsItSays) {
  const Layer layer = Layer::random(config_of(64, 16, 4), 1, DType::bf16);
  const Inputs inputs(layer, 2, 256, false);
  LayerTape tape;
  run_layer(layer, inputs, tape);
  const LayerConfig& c = layer.config();
  const std::int64_t tokens = 2 * 256;
  const std::int64_t per_token = 2 * (c.d_model + 4 * c.d_inner + c.dt_rank + 2 * c.d_state);
  const std::int64_t states = 2 * (256 / 32) * c.d_inner * c.d_state * 4;
  const std::int64_t conv = 2 * c.d_inner * 3 * 2;
  EXPECT_EQ(tape.bytes(), tokens * per_token + states + conv);
}

// Memory may run out anywhere in a forward run: what its tape has then is no run.
TEST(LayerGrad, ATapeIsEmptyAfterAForwardThatThrew) {
  const Layer layer = Layer::random(config_of(12, 8, 4), 1);
  const Inputs inputs(layer, 2, 5, false);
  bool failed = true;
  long thrown = 0;
  for (long n = 1; failed; ++n) {
    Stream stream(Device::cpu(), 1);
    LayerTape tape;
    LayerOptions options;
    options.tape = &tape;
    MambaState state = layer.make_state(2);
    Tensor y({2, 5, 12}, DType::f32);
    bool threw = false;
    {
      const testing::FailingAllocation failing(n);
      try {
        layer.forward(inputs.x, state, y, stream, options);
      } catch (const std::bad_alloc&) {
        threw = true;
      }
      failed = failing.failed();
    }
    thrown += threw;
    EXPECT_EQ(tape.filled(), !threw) << "allocation " << n;
  }
  EXPECT_GT(thrown, 8);
}

TEST(LayerGrad, Errors) {
  const Layer layer = Layer::random(config_of(12, 8, 4), 1),
              other = Layer::random(config_of(12, 8, 4), 2);
  const Inputs inputs(layer, 2, 5, false);
  Stream& stream = default_stream();
  LayerTape tape;
  MambaState state = layer.make_state(2), dstate = layer.make_state(2);
  LayerWeights gradients = zero_gradients(layer.config());
  Tensor y({2, 5, 12}, DType::f32), dx({2, 5, 12}, DType::f32), wrong({2, 4, 12}, DType::f32);
  const auto expect = [&](const std::string& text, auto call) {
    expect_error<ArgumentError>("Layer::backward: " + text, call);
  };
  const auto backward = [&] { layer.backward(tape, inputs.dy, &dstate, dx, gradients, stream); };
  expect("tape: expected a forward run that no backward has used, got none", backward);
  LayerOptions options;
  options.tape = &tape;
  layer.forward(inputs.x, state, y, stream, options);
  expect("tape: expected a forward run of this layer, got one of another",
         [&] { other.backward(tape, inputs.dy, &dstate, dx, gradients, stream); });
  expect("dy: expected [2, 5, 12], got [2, 4, 12]",
         [&] { layer.backward(tape, wrong, &dstate, dx, gradients, stream); });
  expect("dx: expected [2, 5, 12], got [2, 4, 12]",
         [&] { layer.backward(tape, inputs.dy, &dstate, wrong, gradients, stream); });
  MambaState narrow = layer.make_state(1);
  expect("state.conv: expected [2, 24, 3], got [1, 24, 3]",
         [&] { layer.backward(tape, inputs.dy, &narrow, dx, gradients, stream); });
  LayerWeights bad = zero_gradients(layer.config());
  bad.x_proj = Tensor::zeros({2, 2}, DType::f32);
  expect("gradients.x_proj.weight: expected [17, 24], got [2, 2]",
         [&] { layer.backward(tape, inputs.dy, &dstate, dx, bad, stream); });
  backward();
  expect("tape: expected a forward run that no backward has used, got none", backward);
  const Tensor rows = Tensor::from<std::int32_t>({0, 1}, {2});
  options.rows = {rows, rows};
  expect_error<ArgumentError>("Layer::forward: rows: expected none with a tape, got a row map",
                              [&] { layer.forward(inputs.x, state, y, stream, options); });
}

}  // namespace
}  // namespace mamba
