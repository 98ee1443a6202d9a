// run(norm, product, conv): the bits of the three run one after the other, on every device, whether
// or not it takes them in one pass.
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <mamba/detail/fused_ops.hpp>
#include <mamba/graph.hpp>
#include <mamba/layer.hpp>
#include <mamba/stack.hpp>

#include "detail/backend.hpp"
#include "each.hpp"
#include "model/layer_variants.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::expect_error;
using testing::Random;

struct Case {
  DType dtype = DType::f32;
  std::int64_t in = 24, channels = 1024, out = 2048, width = 4, batch = 1, time = 1, state_rows = 1;
  bool f32_product = false;
};

// The three operations with everything they read and write.
struct Chain {
  Tensor x, residual, norm_weight, sum, normed;
  Tensor weight, product_bias, xz;
  Tensor conv_weight, conv_bias, state, states, u;
  AddRmsNorm norm;
  Matmul product;
  CausalConv conv;

  Chain(const Case& c, Device device, std::uint64_t seed = 1) {
    Random random(seed);
    const Shape wide{c.batch, c.time, c.in};
    const DType after = c.f32_product ? DType::f32 : c.dtype;
    x = random.normal_tensor(wide, c.dtype).to(device);
    residual = random.normal_tensor(wide, DType::f32, 3).to(device);
    norm_weight = random.normal_tensor({c.in}).to(device);
    weight = random.normal_tensor({c.out, c.in}, c.dtype, 0.1).to(device);
    product_bias = random.normal_tensor({c.out}, c.dtype).to(device);
    conv_weight = random.normal_tensor({c.channels, c.width}).to(device);
    conv_bias = random.normal_tensor({c.channels}).to(device);
    state = random.normal_tensor({c.state_rows, c.channels, c.width - 1}, after).to(device);
    const auto empty = [&](const Shape& shape, DType dtype) {  // what is not written shows
      return random.normal_tensor(shape, dtype).to(device);
    };
    sum = empty(wide, DType::f32);
    normed = empty(wide, c.dtype);
    xz = empty({c.batch, c.time, c.out}, after);
    u = empty({c.batch, c.time, c.channels}, after);
    states = empty({c.batch, c.time, c.channels, c.width - 1}, after);
    norm.x = x;
    norm.residual = residual;
    norm.sum = sum;
    norm.weight = norm_weight;
    norm.y = normed;
    product.x = normed;
    product.weight = weight;
    product.y = xz;
    conv.x = xz.view().columns(0, c.channels);
    conv.weight = conv_weight;
    conv.bias = conv_bias;
    conv.initial_state = state;
    conv.final_state = state;
    conv.y = u;
  }

  std::vector<std::pair<const char*, const Tensor*>> results() const {
    return {{"x", &x},   {"residual", &residual}, {"sum", &sum}, {"normed", &normed},
            {"xz", &xz}, {"state", &state},       {"u", &u},     {"step states", &states}};
  }
};

using Change = std::function<void(Chain&)>;

// What `change` makes of the case, run together and one by one. Whether the device takes it in one
// pass is checked where it is CUDA.
void expect_same_bits(const Case& c, Device device, const std::string& what, bool one_pass,
                      const Change& change = {}) {
  SCOPED_TRACE(what + " " + name_of(c.dtype) + " on " + device.name());
  Chain alone(c, device), together(c, device);
  if (change) {
    change(alone);
    change(together);
  }
  Stream& stream = default_stream(device);
  for (int step = 0; step < 2; ++step) {  // the second from the first one's state
    run(alone.norm, stream);
    run(alone.product, stream);
    run(alone.conv, stream);
    if (device.is_cuda()) {
      EXPECT_EQ(cuda::in_one_pass(together.norm, together.product, together.conv), one_pass);
    }
    detail::run(together.norm, together.product, together.conv, stream);
    stream.synchronize();
    for (std::size_t i = 0; i < alone.results().size(); ++i) {
      EXPECT_EQ(bits(*together.results()[i].second), bits(*alone.results()[i].second))
          << together.results()[i].first << " after step " << step;
    }
  }
  EXPECT_NE(bits(together.u), bits(Chain(c, device).u)) << "nothing was written";
}

// Shapes with whole and broken rounds, fewer and more of them than a ring has, and warps with an
// odd weight row or none.
TEST_EACH(NormMatmulConv, GivesTheBitsOfTheThreeAlone, Device device, DType dtype) {
  Case c;
  c.dtype = dtype;
  for (const auto& [in, channels, out] : {std::tuple{24, 1024, 2048},
                                          {768, 1536, 3072},
                                          {1000, 1100, 2203},
                                          {520, 5003, 5003},
                                          {2560, 1000, 2900},
                                          {2560, 1000, 4203}}) {
    c.in = in;
    c.channels = channels;
    c.out = out;
    expect_same_bits(c, device, "in " + std::to_string(in), true);
  }
}

TEST_EACH(NormMatmulConv, AnyOptionalOperand, Device device, DType dtype) {
  Case c;
  c.dtype = dtype;
  const auto expect = [&](const char* what, const Change& change) {
    expect_same_bits(c, device, what, true, change);
  };
  expect("no residual", [](Chain& chain) { chain.norm.residual = {}; });
  expect("no x", [](Chain& chain) { chain.norm.x = {}; });
  expect("no sum", [](Chain& chain) { chain.norm.x = {}, chain.norm.sum = {}; });
  expect("no norm weight", [](Chain& chain) { chain.norm.weight = {}; });
  expect("a bias", [](Chain& chain) { chain.product.bias = chain.product_bias; });
  expect("no conv bias", [](Chain& chain) { chain.conv.bias = {}; });
  expect("no activation", [](Chain& chain) { chain.conv.silu = false; });
  expect("from zero", [](Chain& chain) { chain.conv.initial_state = {}; });
  expect("no final state", [](Chain& chain) { chain.conv.final_state = {}; });
  expect("step states", [](Chain& chain) { chain.conv.step_states = chain.states; });
  const Tensor reset = Tensor::from<std::int32_t>({1}, {1, 1}).to(device);
  expect("a reset", [&](Chain& chain) { chain.conv.reset = reset; });
}

TEST_EACH(NormMatmulConv, RowsOfALargerState, Device device) {
  Case c;
  c.dtype = DType::bf16;
  c.state_rows = 3;
  for (const auto& [read, write] : {std::pair{2, 2}, {1, 0}, {-1, 1}, {1, -1}, {-1, -1}}) {
    const Tensor from = Tensor::from<std::int32_t>({read}, {1}).to(device);
    const Tensor to = Tensor::from<std::int32_t>({write}, {1}).to(device);
    expect_same_bits(c, device, "rows " + std::to_string(read) + " " + std::to_string(write), true,
                     [&](Chain& chain) {
                       chain.conv.rows = {from, to};
                       chain.conv.step_states = chain.states;
                     });
  }
}

// What one pass cannot do is done in three.
TEST_EACH(NormMatmulConv, AnythingElseIsRunOneByOne, Device device) {
  const auto with = [](auto change) {
    Case c;
    c.dtype = DType::bf16;
    change(c);
    return c;
  };
  const auto three = [&](const char* what, const Case& c, const Change& change = {}) {
    expect_same_bits(c, device, what, false, change);
  };
  three("few weight rows", with([](Case& c) { c.channels = 40, c.out = 80; }));
  three("unaligned", with([](Case& c) { c.in = 21; }));
  three("a long norm", with([](Case& c) { c.in = 4104; }));
  three("another width", with([](Case& c) { c.width = 3; }));
  three("a product that is not rounded", with([](Case& c) { c.f32_product = true; }));
  three("two rows", with([](Case& c) { c.batch = c.state_rows = 2; }));
  three("two steps", with([](Case& c) { c.time = 2; }));
  const Case c = with([](Case&) {});
  three("the sum in place", c, [](Chain& chain) { chain.norm.sum = {}; });
  three("the sum is the residual", c, [](Chain& chain) { chain.norm.sum = chain.residual; });
  three("another input", c, [](Chain& chain) { chain.product.x = chain.x; });
  three("later channels", c,
        [](Chain& chain) { chain.conv.x = chain.xz.view().columns(1024, 1024); });
}

TEST(NormMatmulConv, WrongOperandsAreNamedAndNothingIsTouched) {
  Chain chain(Case{}, Device::cpu());
  const auto before = bits(chain.sum);
  chain.conv.weight = {};
  expect_error<ArgumentError>("causal_conv: weight: expected a tensor, got none", [&] {
    detail::run(chain.norm, chain.product, chain.conv, default_stream());
  });
  EXPECT_EQ(bits(chain.sum), before);
}

TEST_EACH(NormMatmulConv, AStateRowThatDoesNotExistGivesNaN, testing::CudaDevice device) {
  Stream stream(device);
  Chain chain(Case{}, device);
  const auto before = bits(chain.state);
  const Tensor row = Tensor::from<std::int32_t>({1}, {1}).to(device);
  chain.conv.rows = {row, row};
  detail::run(chain.norm, chain.product, chain.conv, stream);
  EXPECT_THROW(stream.synchronize(), ArgumentError);
  EXPECT_EQ(bits(chain.state), before);
  for (const double value : testing::values(chain.u)) EXPECT_TRUE(std::isnan(value));
}

// A stack's steps against its layers and norms called one by one, at once and from a graph. Eight
// states, so that no device takes all layers at once, whose roundings are others.
TEST_EACH(NormMatmulConv, AStackTakesItsStepsWithTheSameBits, Device device, DType dtype) {
  SCOPED_TRACE(name_of(dtype) + std::string(" on ") + device.name());
  LanguageModelConfig config;
  config.layer = testing::config_of(512, 8, 4);
  config.n_layer = 3;
  config.vocab_size = 16;
  config = config.resolved();
  Random random(3);
  StackWeights weights;
  for (std::uint64_t i = 0; i < 3; ++i) {
    LayerWeights layer = testing::lively_weights(config.layer, dtype, i);
    LayerWeights::each(layer, config.layer, dtype,
                       [&](const std::string&, Tensor& tensor, const Shape&, DType) {
                         tensor = tensor.to(device);
                       });
    weights.layers.push_back(std::move(layer));
    weights.norms.push_back(random.normal_tensor({512}).to(device));
  }
  weights.norm_f = random.normal_tensor({512}).to(device);
  const Stack stack(config, std::move(weights));

  Stream stream(device);
  StackState state = stack.make_state(1), expected = stack.make_state(1);
  const Shape shape{1, 1, 512};
  Tensor x(shape, dtype, device), y(shape, dtype, device), normed(shape, dtype, device);
  Tensor branch(shape, dtype, device), expected_y(shape, dtype, device);
  Tensor residual(shape, DType::f32, device);
  const auto by_hand = [&] {
    AddRmsNorm norm;
    norm.epsilon = config.norm_epsilon;
    norm.residual = residual;
    norm.y = normed;
    copy(x, residual, stream);
    for (std::size_t i = 0; i < stack.size(); ++i) {
      norm.weight = stack.norm(i);
      run(norm, stream);
      stack.layer(i).forward(normed, expected.layers[i], branch, stream);
      norm.x = branch;
    }
    norm.weight = stack.norm(stack.size());
    norm.y = expected_y;
    run(norm, stream);
  };
  const auto step = [&](Stream& on) { stack.forward(x, state, y, on); };
  std::optional<Graph> graph;
  for (int t = 0; t < 4; ++t) {
    const Tensor input = random.normal_tensor(shape, dtype).to(device);
    copy(input, x, stream);
    by_hand();
    if (t == 2 && device.is_cuda()) graph = Graph::record(stream, step);
    graph ? graph->replay() : step(stream);
    stream.synchronize();
    EXPECT_EQ(bits(y), bits(expected_y)) << t;
    for (std::size_t i = 0; i < stack.size(); ++i) {
      EXPECT_EQ(bits(state.layers[i].conv), bits(expected.layers[i].conv)) << t;
      EXPECT_EQ(bits(state.layers[i].ssm), bits(expected.layers[i].ssm)) << t;
    }
  }
}

}  // namespace
}  // namespace mamba
