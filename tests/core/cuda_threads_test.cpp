// Threads that give the same kernels launches of different sizes at the same time: what each
// computes is what it computes alone.
#ifdef MAMBA_HAS_CUDA  // set by the build: the kernels are in the library only then
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <mamba/language_model.hpp>

#include "each.hpp"
#include "ops/scan_grad_inputs.hpp"
#include "testing.hpp"

namespace mamba::testing {
namespace {

constexpr std::chrono::seconds each_pair{3};

using Bits = std::vector<unsigned char>;

// Work of a thread: all that it leaves, in bits. The stream is the thread's own.
using Work = std::function<Bits(Stream&)>;

void append(Bits& to, const ConstTensorView& view) {
  const Bits more = bits(view);
  to.insert(to.end(), more.begin(), more.end());
}

// Both at the same time, again and again, each against what it left alone.
void expect_the_same_side_by_side(Device device, const Work& one, const Work& other) {
  const Work* works[] = {&one, &other};
  Bits alone[2];
  for (int i = 0; i < 2; ++i) {
    Stream stream(device);
    alone[i] = (*works[i])(stream);
    ASSERT_FALSE(alone[i].empty());
  }
  std::atomic<int> runs[2] = {};
  std::string wrong[2];
  const auto end = std::chrono::steady_clock::now() + each_pair;
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      try {
        Stream stream(device);
        do {
          if ((*works[i])(stream) != alone[i]) wrong[i] = "other bits than alone";
          ++runs[i];
        } while (wrong[i].empty() && std::chrono::steady_clock::now() < end);
      } catch (const std::exception& error) {
        wrong[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(wrong[i], "") << "thread " << i << " after " << runs[i] << " runs";
    EXPECT_GT(runs[i], 0);
  }
}

Work prompt(const LanguageModel& model, std::int64_t time) {
  return [&model, time](Stream& stream) {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(time));
    for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i % 61);
    const Tensor ids = Tensor::from(tokens, {1, time}).to(stream.device());
    StackState state = model.make_state(1);
    Tensor logits({1, 64}, DType::f32, stream.device());
    model.forward(ids, state, Logits::last(logits), stream);
    stream.synchronize();
    Bits left = bits(logits);
    append(left, state.layers.back().ssm);
    return left;
  };
}

TEST_EACH(CudaThreads, PromptsOfDifferentLengths, CudaDevice device) {
  LanguageModelConfig config;
  config.layer.d_model = 256;
  config.n_layer = 2;
  config.vocab_size = 64;
  const LanguageModel model = LanguageModel::random(config, 1, DType::bf16, device);
  expect_the_same_side_by_side(device, prompt(model, 300), prompt(model, 3000));
}

TEST_EACH(CudaThreads, ProductsOfDifferentWidths, CudaDevice device) {
  const auto product = [&](std::int64_t in) {
    return [in](Stream& stream) {
      Random random(static_cast<std::uint64_t>(in));
      const Tensor x = random.normal_tensor({1, in}, DType::bf16).to(stream.device());
      const Tensor weight = random.normal_tensor({4096, in}, DType::bf16).to(stream.device());
      Tensor y({1, 4096}, DType::f32, stream.device());
      Bits left;
      for (int i = 0; i < 50; ++i) {
        zero(y, stream);
        Matmul op;
        op.x = x;
        op.weight = weight;
        op.y = y;
        run(op, stream);
        stream.synchronize();
        append(left, y);
      }
      return left;
    };
  };
  expect_the_same_side_by_side(device, product(768), product(8192));
}

TEST_EACH(CudaThreads, ScanGradientsOfDifferentLengths, CudaDevice device) {
  const auto gradient = [&](std::int64_t time) {
    ScanCase c;
    c.batch = 1;
    c.dtype = DType::bf16;
    c.aligned = true;
    c.channels = 512;
    c.time = time;
    return [c](Stream& stream) {
      const GradInputs inputs = GradInputs(c).to(stream.device());
      const Gradients out(c, stream.device());
      Bits left;
      for (int i = 0; i < 20; ++i) {
        run_both(inputs, out, stream);
        append(left, out.dx.view());
        append(left, out.dB.view());
        append(left, out.dA.view());
      }
      return left;
    };
  };
  expect_the_same_side_by_side(device, gradient(100), gradient(2000));
}

}  // namespace
}  // namespace mamba::testing
#endif
