// Recorded work is the same work: the same bits as eager calls, again and again, and nothing
// allocated.
#include <mamba/grad_ops.hpp>
#include <mamba/graph.hpp>
#include <mamba/language_model.hpp>
#include <mamba/train_ops.hpp>

#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::CudaDevice;

TEST_EACH(Graph, ReplayIsTheEagerCall, testing::CudaDevice device, DType dtype) {
  const LanguageModel model = LanguageModel::load(testing::golden_folder("bytes"), dtype, device);
  for (std::int64_t time : {1, 2, 9, 600}) {
    SCOPED_TRACE("time " + std::to_string(time));
    testing::Random random(1);
    std::vector<std::int32_t> list(static_cast<std::size_t>(2 * time));
    for (auto& id : list) id = static_cast<std::int32_t>(random.integer(0, 255));
    const Tensor ids = Tensor::from(list, {2, time}).to(device);
    Stream stream(device);
    StackState state = model.make_state(2);
    Tensor logits({2, 256}, DType::f32, device);
    const auto forward = [&](Stream& on) { model.forward(ids, state, Logits::last(logits), on); };
    for (int i = 0; i < 3; ++i) forward(stream);
    stream.synchronize();
    const auto eager_logits = bits(logits);
    const auto eager_ssm = bits(state.layers[1].ssm);

    state.reset(stream);
    stream.synchronize();
    const Graph graph = Graph::record(stream, forward);
    for (int i = 0; i < 3; ++i) graph.replay();
    stream.synchronize();
    EXPECT_EQ(bits(logits), eager_logits);
    EXPECT_EQ(bits(state.layers[1].ssm), eager_ssm);
  }
}

// One decode step, its token fed back in device memory, recorded once and replayed for every token.
TEST_EACH(Graph, ADecodeStepWritesTheEagerText, testing::CudaDevice device, DType dtype) {
  for (float temperature : {0.0f, 1.0f}) {
    SCOPED_TRACE(temperature);
    const LanguageModel model = LanguageModel::load(testing::golden_folder("bytes"), dtype, device);
    Stream stream(device);
    StackState state = model.make_state(2);
    Tensor logits({2, 256}, DType::f32, device);
    Tensor ids({2}, DType::i32, device), draws({2}, DType::i32, device);
    const Tensor seed = Tensor::from<std::int32_t>({1, 2, 3, 4}, {2, 2}).to(device);
    const auto step = [&](Stream& on) {
      model.forward(ids.view().reshape({2, 1}), state, Logits::last(logits), on);
      Sample sample;
      sample.logits = logits;
      sample.seed = seed;
      sample.draws = draws;
      sample.ids = ids;
      sample.temperature = temperature;
      sample.top_k = 50;
      run(sample, on);
    };
    const auto text = [&](const auto& one_step) {
      state.reset(stream);
      zero(ids, stream);
      zero(draws, stream);
      std::vector<std::vector<unsigned char>> tokens;
      for (int i = 0; i < 30; ++i) {
        one_step();
        stream.synchronize();
        tokens.push_back(bits(ids));
      }
      return tokens;
    };
    const auto eager = text([&] { step(stream); });
    const auto eager_ssm = bits(state.layers[1].ssm);
    const Graph graph = Graph::record(stream, step);
    EXPECT_EQ(text([&] { graph.replay(); }), eager);
    EXPECT_EQ(bits(state.layers[1].ssm), eager_ssm);
  }
}

// Everything that training adds to a forward run but the scan's gradient, one after the other.
TEST_EACH(Graph, GradientsReplayTheEagerCalls, testing::CudaDevice device, DType dtype) {
  constexpr std::int64_t batch = 2, time = 70, channels = 64, vocab = 48;
  testing::Random random(1);
  const auto operand = [&](const Shape& shape, DType type) {
    return random.normal_tensor(shape, type).to(device);
  };
  const Shape shape{batch, time, channels};
  const Tensor x = operand(shape, dtype), dy = operand(shape, dtype), z = operand(shape, dtype);
  const Tensor sum = operand(shape, DType::f32), taps = operand({channels, 4}, DType::f32);
  const Tensor scale = operand({channels}, DType::f32);
  const Tensor five_taps = operand({channels, 5}, DType::f32);
  std::vector<std::int32_t> list(static_cast<std::size_t>(batch * time));
  for (auto& id : list) id = static_cast<std::int32_t>(random.integer(0, vocab - 1));
  const Tensor ids = Tensor::from(list, {batch, time}).to(device);
  std::vector<Tensor> outputs;
  const auto output = [&](const Shape& of, DType type) {
    outputs.push_back(Tensor::zeros(of, type, device));
    return outputs.back().view();
  };
  CausalConvGrad conv[2];
  for (int i = 0; i < 2; ++i) {  // a width of its own kernel, and any other
    conv[i].x = x;
    conv[i].weight = i == 0 ? taps : five_taps;
    conv[i].dy = dy;
    conv[i].dx = output(shape, dtype);
    conv[i].dfinal_state = conv[i].dinitial_state = output({batch, channels, 3 + i}, dtype);
    conv[i].dweight = output({channels, 4 + i}, DType::f32);
    conv[i].dbias = output({channels}, DType::f32);
  }
  AddRmsNormGrad rms;
  rms.sum = sum;
  rms.weight = scale;
  rms.dy = dy;
  rms.dresidual = output(shape, DType::f32);
  rms.dx = output(shape, dtype);
  rms.dweight = output({channels}, DType::f32);
  LayerNormGrad layer;
  layer.x = x;
  layer.weight = layer.bias = scale;
  layer.z = z;
  layer.dy = dy;
  layer.dx = output(shape, dtype);
  layer.dz = output(shape, dtype);
  layer.dweight = output({channels}, DType::f32);
  layer.dbias = output({channels}, DType::f32);
  Matmul product;  // dweight = dy^T x
  product.x = dy;
  product.weight = x;
  product.y = output({channels, channels}, DType::f32);
  product.transpose_x = product.transpose_weight = product.accumulate = true;
  EmbeddingGrad embedding;
  embedding.ids = ids;
  embedding.dy = dy;
  embedding.dtable = output({vocab, channels}, DType::f32);
  CrossEntropy loss;
  loss.logits = x;
  loss.targets = ids;
  loss.loss = output({batch, time}, DType::f32);
  loss.dlogits = output(shape, dtype);
  SumSquares squares;
  squares.x = embedding.dtable;
  squares.y = output({1}, DType::f32);
  AdamWStep adam;
  adam.weight = output({vocab, channels}, DType::f32);
  adam.stored = output({vocab, channels}, dtype);
  adam.gradient = embedding.dtable;
  adam.m = output({vocab, channels}, DType::f32);
  adam.v = output({vocab, channels}, DType::f32);
  adam.squares = squares.y;
  adam.max_norm = 1;
  const auto step = [&](Stream& stream) {
    for (const CausalConvGrad& op : conv) run(op, stream);
    run(rms, stream);
    run(layer, stream);
    run(product, stream);
    run(embedding, stream);
    run(loss, stream);
    run(squares, stream);
    run(adam, stream);
  };
  Stream stream(device);
  const auto results = [&](const auto& one_step) {
    for (Tensor& tensor : outputs) zero(tensor, stream);
    for (int i = 0; i < 2; ++i) one_step();
    stream.synchronize();
    std::vector<std::vector<unsigned char>> list_of_bits;
    for (const Tensor& tensor : outputs) list_of_bits.push_back(bits(tensor));
    return list_of_bits;
  };
  const auto eager = results([&] { step(stream); });
  const Graph graph = Graph::record(stream, step);
  EXPECT_EQ(results([&] { graph.replay(); }), eager);
}

TEST_EACH(Graph, AnErrorWhileRecordingLeavesTheStreamUsable, testing::CudaDevice device) {
  Stream stream(device);
  Tensor values = Tensor::from<float>({1, 2}, {2}).to(device);
  EXPECT_THROW(Graph::record(stream,
                             [&](Stream& on) {
                               zero(values, on);
                               throw ArgumentError("test", "x", "nothing", "this");
                             }),
               ArgumentError);
  stream.synchronize();
  EXPECT_EQ(testing::values(values), (std::vector<double>{1, 2})) << "recorded, not run";
  zero(values, stream);
  stream.synchronize();
  EXPECT_EQ(testing::values(values), (std::vector<double>{0, 0}));
}

// Every replay would read where the list was.
TEST_EACH(Graph, RefusesRowsAsAList, CudaDevice device) {
  Stream stream(device);
  LayerConfig config;
  config.d_model = 8;
  StackState state(config, 2, 4, DType::f32, device);
  const StackState source(config, 2, 1, DType::f32, device);
  testing::expect_error<ArgumentError>(
      "StackState::scatter: rows: expected a tensor where a graph is recorded, got a list",
      [&] { Graph::record(stream, [&](Stream& on) { state.scatter(source, {3}, on); }); });
  testing::expect_error<ArgumentError>(
      "MambaState::gather: rows: expected a tensor where a graph is recorded, got a list",
      [&] { Graph::record(stream, [&](Stream& on) { state.gather({3}, on); }); });
  state.scatter(source, {3}, stream);
  stream.synchronize();
}

TEST(Graph, NeedsACudaStream) {
  Stream stream;
  testing::expect_error<ArgumentError>("Graph::record: stream: expected a CUDA stream, got cpu",
                                       [&] { Graph::record(stream, [](Stream&) {}); });
}

}  // namespace
}  // namespace mamba
