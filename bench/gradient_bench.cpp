// Gradients on the CPU beside their forward operations, and the step of a small model. First right:
// the scan's gradient recomputes the forward run's y to the bit, the model's loss goes down.
// Counter: nanoseconds per channel and token.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include <mamba/detail/scan_chunk.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/loss.hpp>
#include <mamba/optimizer.hpp>

#include "random_tensor.hpp"

namespace {

using namespace mamba;
using mamba::bench::random_tensor;

// x and z are halves of one projection, B and C of another, as in a layer.
struct Scan {
  static constexpr std::int64_t d_state = 16;
  Shape shape;
  Tensor xz, dt, BC, A_log, D, dt_bias, y, dy, chunk_states;
  Tensor dxz, ddt, dBC, dA_log, dD, ddt_bias, again, dstate;
  SelectiveScan forward;
  SelectiveScanGrad backward;

  Scan(const Shape& size, DType dtype, Stream& stream)
      : shape(size),
        xz(random_tensor({size[0], size[1], 2 * size[2]}, dtype, -2, 2)),
        dt(random_tensor(size, dtype, -1, 1)),
        BC(random_tensor({size[0], size[1], 2 * d_state}, dtype, -1, 1)),
        A_log(random_tensor({size[2], d_state}, DType::f32, 0, 2.8f)),
        D(random_tensor({size[2]}, DType::f32, 0, 1)),
        dt_bias(random_tensor({size[2]}, DType::f32, -6, -2)),
        y(size, dtype),
        dy(random_tensor(size, dtype, -1, 1)),
        dxz(xz.shape(), dtype),
        ddt(size, dtype),
        dBC(BC.shape(), dtype),
        dA_log(A_log.shape(), DType::f32),
        dD(D.shape(), DType::f32),
        ddt_bias(D.shape(), DType::f32),
        again(size, dtype),
        dstate(Tensor::zeros({size[0], size[2], d_state}, DType::f32)) {
    const std::int64_t channels = size[2];
    forward.x = xz.view().columns(0, channels);
    forward.z = xz.view().columns(channels, channels);
    forward.dt = dt;
    forward.B = BC.view().columns(0, d_state);
    forward.C = BC.view().columns(d_state, d_state);
    forward.A_log = A_log;
    forward.D = D;
    forward.dt_bias = dt_bias;
    forward.y = y;
    forward.chunk_steps = detail::scan_chunk_steps(forward, stream);
    const std::int64_t chunks = (size[1] + forward.chunk_steps - 1) / forward.chunk_steps;
    chunk_states = Tensor({size[0], chunks, channels, d_state}, DType::f32);
    forward.chunk_states = chunk_states;
    backward.x = forward.x;
    backward.z = forward.z;
    backward.dt = dt;
    backward.B = forward.B;
    backward.C = forward.C;
    backward.A_log = A_log;
    backward.D = D;
    backward.dt_bias = dt_bias;
    backward.chunk_states = chunk_states;
    backward.chunk_steps = forward.chunk_steps;
    backward.dy = dy;
    backward.dfinal_state = backward.dinitial_state = dstate;
    backward.dx = dxz.view().columns(0, channels);
    backward.dz = dxz.view().columns(channels, channels);
    backward.ddt = ddt;
    backward.dB = dBC.view().columns(0, d_state);
    backward.dC = dBC.view().columns(d_state, d_state);
    backward.dA_log = dA_log;
    backward.dD = dD;
    backward.ddt_bias = ddt_bias;
    backward.y = again;
  }
};

void scan(benchmark::State& state, const Shape& shape, DType dtype, int threads, bool gradient) {
  Stream stream(Device::cpu(), threads);
  Scan scan(shape, dtype, stream);
  run(scan.forward, stream);
  run(scan.backward, stream);
  const Tensor y = scan.y.to(Device::cpu(), DType::f32);
  const Tensor again = scan.again.to(Device::cpu(), DType::f32);
  for (std::int64_t i = 0; i < y.count(); ++i) {
    if (y.data<float>()[i] != again.data<float>()[i]) return state.SkipWithError("wrong result");
  }
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    if (gradient) {
      run(scan.backward, stream);
    } else {
      run(scan.forward, stream);
    }
  }
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * shape.count());
}

void conv(benchmark::State& state, const Shape& shape, DType dtype, int threads, bool gradient) {
  Stream stream(Device::cpu(), threads);
  const Tensor x = random_tensor(shape, dtype, -2, 2), dy = random_tensor(shape, dtype, -1, 1);
  const Tensor weight = random_tensor({shape[2], 4}, DType::f32, -1, 1);
  Tensor y(shape, dtype), dx(shape, dtype), dweight({shape[2], 4}, DType::f32);
  CausalConv forward;
  forward.x = x;
  forward.weight = weight;
  forward.y = y;
  CausalConvGrad backward;
  backward.x = x;
  backward.weight = weight;
  backward.dy = dy;
  backward.dx = dx;
  backward.dweight = dweight;
  run(forward, stream);
  run(backward, stream);
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    if (gradient) {
      run(backward, stream);
    } else {
      run(forward, stream);
    }
  }
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * shape.count());
}

// Forward, backward and optimiser of a byte model, batch 16, d_model 64, time 256.
void train_step(benchmark::State& state, DType dtype, int threads) {
  LanguageModelConfig config;
  config.layer.d_model = 64;
  config.n_layer = 2;
  config.vocab_size = 256;
  LanguageModel model = LanguageModel::random(config, 1, dtype);
  LanguageModelWeights gradients = zero_gradients(config);
  AdamW optimizer(parameters(model, gradients));
  Stream stream(Device::cpu(), threads);
  const Shape shape{16, 256};
  std::vector<std::int32_t> text;
  for (std::int64_t i = 0; i <= shape.count(); ++i) {
    text.push_back(static_cast<std::int32_t>(i * i % 251));
  }
  const Tensor ids = Tensor::from(std::vector<std::int32_t>(text.begin(), text.end() - 1), shape);
  const Tensor targets =
      Tensor::from(std::vector<std::int32_t>(text.begin() + 1, text.end()), shape);
  Tensor logits({16, 256, 256}, DType::f32), dlogits({16, 256, 256}, dtype);
  StackState carried = model.make_state(16);
  LanguageModelTape tape;
  TokenLoss loss;
  LanguageModelOptions options;
  options.tape = &tape;
  const auto step = [&] {
    model.forward(ids, carried, Logits::all(logits), stream, options);
    loss.run(logits, targets, {shape.count(), dlogits}, stream);
    model.backward(tape, dlogits, nullptr, gradients, stream);
    optimizer.step(3e-3f, stream);
    return loss.mean(stream);
  };
  const float first = step();
  float last = first;
  for (int i = 0; i < 5; ++i) last = step();
  if (!(last < first)) return state.SkipWithError("does not learn");
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) step();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  state.counters["tokens_per_second"] =
      static_cast<double>(state.iterations() * shape.count()) / taken.count();
}

const bool registered = [] {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int threads : {1, 2}) {
      const std::string rest =
          std::string("/") + name_of(dtype) + "/threads:" + std::to_string(threads);
      for (const Shape& shape : {Shape{1, 512, 1536}, Shape{16, 256, 128}}) {
        for (const bool gradient : {false, true}) {
          const std::string name = (gradient ? "_grad/" : "/") + shape.to_string() + rest;
          benchmark::RegisterBenchmark(("train_scan" + name).c_str(), scan, shape, dtype, threads,
                                       gradient)
              ->UseRealTime();
          benchmark::RegisterBenchmark(("train_conv" + name).c_str(), conv, shape, dtype, threads,
                                       gradient)
              ->UseRealTime();
        }
      }
      benchmark::RegisterBenchmark(("train_step/[16, 256], d_model 64" + rest).c_str(), train_step,
                                   dtype, threads)
          ->UseRealTime();
    }
  }
  return true;
}();

}  // namespace
