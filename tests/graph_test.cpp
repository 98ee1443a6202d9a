// Recorded work is the same work: the same bits as eager calls, again and again, and nothing
// allocated.
#include <mamba/graph.hpp>
#include <mamba/language_model.hpp>

#include "testing.hpp"

namespace mamba {
namespace {

using testing::bits;
using testing::devices;

TEST(Graph, ReplayIsTheEagerCall) {
  for (Device device : devices()) {
    if (device.is_cpu()) continue;
    for (DType dtype : testing::storage_dtypes()) {
      const LanguageModel model =
          LanguageModel::load(testing::golden_folder("bytes"), dtype, device);
      for (std::int64_t time : {1, 2, 9, 600}) {
        SCOPED_TRACE(device.name() + " " + name_of(dtype) + " time " + std::to_string(time));
        testing::Random random(1);
        std::vector<std::int32_t> list(static_cast<std::size_t>(2 * time));
        for (auto& id : list) id = static_cast<std::int32_t>(random.integer(0, 255));
        const Tensor ids = Tensor::from(list, {2, time}).to(device);
        Stream stream(device);
        StackState state = model.make_state(2);
        Tensor logits({2, 256}, DType::f32, device);
        const auto forward = [&](Stream& on) { model.forward(ids, state, logits, on); };
        for (int i = 0; i < 3; ++i) forward(stream);
        stream.synchronize();
        const auto eager_logits = bits(logits);
        const auto eager_ssm = bits(state.layers[1].ssm);

        state.reset(stream);
        stream.synchronize();
        const Graph graph = Graph::record(stream, forward);
        for (int i = 0; i < 3; ++i) graph.replay(stream);
        stream.synchronize();
        EXPECT_EQ(bits(logits), eager_logits);
        EXPECT_EQ(bits(state.layers[1].ssm), eager_ssm);
      }
    }
  }
}

// One decode step, its token fed back in device memory, recorded once and replayed for every token.
TEST(Graph, ADecodeStepWritesTheEagerText) {
  for (Device device : devices()) {
    if (device.is_cpu()) continue;
    for (DType dtype : testing::storage_dtypes()) {
      for (float temperature : {0.0f, 1.0f}) {
        SCOPED_TRACE(device.name() + " " + name_of(dtype));
        const LanguageModel model =
            LanguageModel::load(testing::golden_folder("bytes"), dtype, device);
        Stream stream(device);
        StackState state = model.make_state(2);
        Tensor logits({2, 256}, DType::f32, device);
        Tensor ids({2}, DType::i32, device), draws({2}, DType::i32, device);
        const Tensor seed = Tensor::from<std::int32_t>({1, 2, 3, 4}, {2, 2}).to(device);
        const auto step = [&](Stream& on) {
          model.forward(ids.view().reshape({2, 1}), state, logits, on);
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
        EXPECT_EQ(text([&] { graph.replay(stream); }), eager);
        EXPECT_EQ(bits(state.layers[1].ssm), eager_ssm);
      }
    }
  }
}

TEST(Graph, AnErrorWhileRecordingLeavesTheStreamUsable) {
  for (Device device : devices()) {
    if (device.is_cpu()) continue;
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
}

TEST(Graph, NeedsACudaStream) {
  Stream stream;
  testing::expect_error<ArgumentError>("Graph::record: stream: expected a CUDA stream, got cpu",
                                       [&] { Graph::record(stream, [](Stream&) {}); });
}

}  // namespace
}  // namespace mamba
