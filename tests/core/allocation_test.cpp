// forward into a given output allocates nothing after its first call, whatever goes through it.
// Counted on the CPU, since CUDA's driver allocates host memory as it likes; there graph_test.cpp
// records the calls, which no allocation survives.
#include <mamba/generator.hpp>
#include <mamba/language_model.hpp>
#include <mamba/loss.hpp>
#include <mamba/optimizer.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <deque>

#include "core/allocations.hpp"
#include "each.hpp"
#include "testing.hpp"

namespace mamba {
namespace {

using testing::allocations_of;

const Device device = Device::cpu();

TEST_EACH(Allocation, NoneInLayerForwardAfterItsFirstCall, MixerKind mixer, DType dtype) {
  if (!testing::allocations_are_counted()) GTEST_SKIP() << "the sanitizer owns malloc";
  LayerConfig config;
  config.mixer = mixer;
  config.d_model = 96;
  const Layer layer = Layer::random(config, 1, dtype, device);
  for (std::int64_t time : {1, 3, 4, 8, 9, 70}) {
    Stream stream(device, 2 * time <= 8 ? 2 : 1);  // up to 8 rows are our own product
    testing::Random random(1);
    const Tensor x = random.normal_tensor({2, time, 96}, dtype).to(device);
    Tensor y({2, time, 96}, dtype, device);
    MambaState state = layer.make_state(2);
    const Tensor reset = Tensor::zeros({2, time}, DType::i32, device);
    LayerOptions options;
    options.reset = reset;
    const auto forward = [&] { layer.forward(x, state, y, stream, options); };
    forward();
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(allocations_of(forward), 0) << name_of(dtype) << " time " << time;
    }
  }
}

TEST_EACH(Allocation, NoneInATrainingStepAfterItsFirst, MixerKind mixer, DType dtype) {
  if (!testing::allocations_are_counted()) GTEST_SKIP() << "the sanitizer owns malloc";
  LanguageModelConfig config;
  config.layer.mixer = mixer;
  config.layer.d_model = 48;
  if (mixer == MixerKind::mamba2) config.layer.head_dim = 32;
  config.layer.gated_norm = config.layer.norm_dt_b_c = mixer == MixerKind::mamba1;
  config.n_layer = 2;
  config.vocab_size = 40;
  for (const bool recompute : {false, true}) {
    LanguageModel model = LanguageModel::random(config, 1, dtype);
    LanguageModelWeights gradients = zero_gradients(config);
    AdamW optimizer(parameters(model, gradients));
    Stream stream(device, 1);
    StackState state = model.make_state(2), dstate = model.make_state(2);
    const Tensor ids = Tensor::zeros({2, 37}, DType::i32);
    Tensor logits({2, 37, 40}, DType::f32), dlogits({2, 37, 40}, dtype);
    LanguageModelTape tape;
    tape.stack.recompute = recompute;
    LanguageModelOptions options;
    options.tape = &tape;
    options.reset = ids;
    TokenLoss loss;
    const auto step = [&] {
      model.forward(ids, state, Logits::all(logits), stream, options);
      loss.run(logits, ids, {74, dlogits}, stream);
      model.backward(tape, dlogits, &dstate, gradients, stream);
      optimizer.step(1e-3f, stream);
    };
    step();
    EXPECT_EQ(allocations_of(step), 0) << name_of(dtype);
  }
}

TEST(Allocation, NoneInLanguageModelForwardAfterItsFirstCall) {
  if (!testing::allocations_are_counted()) GTEST_SKIP() << "the sanitizer owns malloc";
  const LanguageModel model =
      LanguageModel::load(testing::golden_folder("bytes"), DType::f32, device);
  Stream stream(device, 1);
  StackState state = model.make_state(1);
  Tensor logits({1, model.config().vocab_size}, DType::f32, device);
  const Tensor prompt = Tensor::zeros({1, 40}, DType::i32, device);
  const auto read = [&](std::int64_t time) {
    return [&, time] {
      model.forward(prompt.view().columns(0, time), state, Logits::last(logits), stream);
    };
  };
  for (std::int64_t time : {40, 1, 7}) {
    read(time)();
    EXPECT_EQ(allocations_of(read(time)), 0) << "time " << time;
  }
  EXPECT_EQ(allocations_of(read(40)), 0) << "and back to a size seen before";
}

TEST(Allocation, NoneInCopyFromAndReset) {
  if (!testing::allocations_are_counted()) GTEST_SKIP() << "the sanitizer owns malloc";
  LayerConfig config;
  config.d_model = 32;
  Stream stream(device);
  MambaState state(config, 3, DType::f32, device);
  const MambaState snapshot = state.clone();
  const Tensor mask = Tensor::zeros({3}, DType::i32, device);
  EXPECT_EQ(allocations_of([&] {
              state.copy_from(snapshot, stream);
              state.reset(mask, stream);
              state.reset(stream);
            }),
            0);
}

// While it lives, whoever touches a whole page of `memory` ends the program.
class Untouchable {
 public:
  explicit Untouchable(ConstTensorView memory) {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto from = reinterpret_cast<std::uintptr_t>(memory.data());
    const auto to = from + static_cast<std::uintptr_t>(memory.count() * size_of(memory.dtype()));
    first_ = (from + page - 1) / page * page;
    bytes_ = to / page * page > first_ ? to / page * page - first_ : 0;
    allow(PROT_NONE);
  }
  ~Untouchable() { allow(PROT_READ | PROT_WRITE); }
  Untouchable(const Untouchable&) = delete;
  Untouchable& operator=(const Untouchable&) = delete;
  std::size_t bytes() const { return bytes_; }

 private:
  void allow(int what) { EXPECT_EQ(mprotect(reinterpret_cast<void*>(first_), bytes_, what), 0); }

  std::uintptr_t first_ = 0;
  std::size_t bytes_ = 0;
};

TEST(NothingToDo, ALayerCallOfTime0TouchesNoWeightAndNoState) {
  LayerConfig config;
  config.d_model = 768;
  const Layer layer = Layer::random(config, 1);
  MambaState state = layer.make_state(1);
  const Tensor x({1, 0, 768}, DType::f32);
  Tensor y({1, 0, 768}, DType::f32);
  Stream stream(device, 2);
  std::size_t bytes = 0;
  {
    std::deque<Untouchable> all;
    const auto add = [&](const Tensor& tensor) { bytes += all.emplace_back(tensor).bytes(); };
    LayerWeights::each(
        layer.weights(), layer.config(), layer.dtype(),
        [&](const char*, const Tensor& tensor, const Shape&, DType) { add(tensor); });
    add(state.conv);
    add(state.ssm);
    layer.forward(x, state, y, stream);
  }
  EXPECT_GT(bytes, std::size_t{14} << 20) << "most of the layer";
}

}  // namespace
}  // namespace mamba
