// The CUDA kernels of training at the sizes of a 2.8b layer and a 130m model, beside the bytes that
// they move (see cuda_timing.hpp).
#include <benchmark/benchmark.h>

#include <mamba/detail/scan_chunk.hpp>
#include <mamba/grad_ops.hpp>
#include <mamba/layer.hpp>
#include <mamba/tape.hpp>
#include <mamba/train_ops.hpp>

#include <memory>
#include <random>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using namespace mamba;

// Times call(operands, stream) on as many sets of operands, made by make(), as overflow the cache.
template <class Make, class Run>
void time_bytes(benchmark::State& bench, std::int64_t bytes, const Make& make, const Run& call) {
  std::vector<Call> calls;
  for (std::size_t i = 0; i < copies_of(bytes); ++i) {
    const auto operands = std::make_shared<std::vector<Tensor>>(make());
    calls.push_back([=](Stream& stream) { call(*operands, stream); });
  }
  report(bench, seconds_per_call(calls), static_cast<double>(bytes) / bytes_per_second);
}

template <class... T>
std::vector<Tensor> list(T&&... tensors) {
  std::vector<Tensor> result;
  (result.push_back(std::move(tensors)), ...);
  return result;
}

// {batch, channels, time}
void conv_grad(benchmark::State& bench) {
  const std::int64_t batch = bench.range(0), channels = bench.range(1), time = bench.range(2);
  const auto make = [=] {
    return list(random_tensor({batch, time, 2 * channels}, DType::bf16, -1, 1),  // x and z
                random_tensor({batch, time, channels}, DType::bf16, -1, 1),      // dy
                Tensor({batch, time, 2 * channels}, DType::bf16, gpu),           // dx and dz
                random_tensor({channels, 4}, DType::f32, -1, 1),
                random_tensor({channels}, DType::f32, -1, 1),
                Tensor({channels, 4}, DType::f32, gpu), Tensor({channels}, DType::f32, gpu),
                Tensor::zeros({batch, channels, 3}, DType::bf16, gpu),
                Tensor::zeros({batch, channels, 3}, DType::bf16, gpu));
  };
  time_bytes(bench, 3 * batch * channels * time * 2, make, [=](auto& t, Stream& stream) {
    CausalConvGrad op;
    op.x = t[0].view().columns(0, channels);
    op.dy = t[1];
    op.dx = t[2].view().columns(0, channels);
    op.weight = t[3];
    op.bias = t[4];
    op.dweight = t[5];
    op.dbias = t[6];
    op.initial_state = t[7];
    op.dfinal_state = op.dinitial_state = t[8];
    run(op, stream);
  });
}

// {batch, channels, time}, 16 states. The floor is 21 special functions per channel and step, or
// the bytes: x, dt, z, dy, the states before each chunk and the gradients. Episodes: of an agent
// that plays them, with resets and without a gate.
void scan_grad(benchmark::State& bench, DType dtype, bool episodes) {
  const std::int64_t batch = bench.range(0), channels = bench.range(1), time = bench.range(2);
  const Shape steps{batch, time, channels}, state{batch, channels, 16};
  const Tensor probe(steps, dtype, gpu), A_log({channels, 16}, DType::f32, gpu);
  SelectiveScan forward;
  forward.x = probe;
  forward.A_log = A_log;
  const Stream stream(gpu);
  const std::int64_t chunk = detail::scan_chunk_steps(forward, stream),
                     chunks = (time + chunk - 1) / chunk;
  const std::int64_t elements = batch * time * channels;
  const std::int64_t bytes =
      (episodes ? 5 : 7) * elements * size_of(dtype) + batch * chunks * channels * 16 * 4;
  std::vector<Call> calls;
  for (std::size_t i = 0; i < copies_of(bytes); ++i) {
    const auto operands = std::make_shared<std::vector<Tensor>>(list(
        random_tensor({batch, time, 2 * channels}, dtype, -2, 2),
        random_tensor(steps, dtype, -1, 1), random_tensor({batch, time, 32}, dtype, -1, 1),
        random_tensor(steps, dtype, -1, 1), random_tensor({channels, 16}, DType::f32, 0, 2.7f),
        random_tensor({channels}, DType::f32, 0, 1), random_tensor({channels}, DType::f32, -6, -2),
        random_tensor({batch, chunks, channels, 16}, DType::f32, -1, 1),
        random_tensor(state, DType::f32, -1, 1), Tensor({batch, time, 2 * channels}, dtype, gpu),
        Tensor(steps, dtype, gpu), Tensor({batch, time, 32}, dtype, gpu),
        Tensor({channels, 16}, DType::f32, gpu), Tensor({channels}, DType::f32, gpu),
        Tensor({channels}, DType::f32, gpu), episode_resets(batch, time)));
    calls.push_back([=](Stream& on) {
      std::vector<Tensor>& t = *operands;
      SelectiveScanGrad op;
      op.x = t[0].view().columns(0, channels);
      op.dt = t[1];
      op.B = t[2].view().columns(0, 16);
      op.C = t[2].view().columns(16, 16);
      op.dy = t[3];
      op.A_log = t[4];
      op.D = t[5];
      op.dt_bias = t[6];
      op.chunk_states = t[7];
      op.chunk_steps = chunk;
      op.dfinal_state = op.dinitial_state = t[8];
      op.dx = t[9].view().columns(0, channels);
      if (episodes) {
        op.reset = t[15];
      } else {
        op.z = t[0].view().columns(channels, channels);
        op.dz = t[9].view().columns(channels, channels);
      }
      op.ddt = t[10];
      op.dB = t[11].view().columns(0, 16);
      op.dC = t[11].view().columns(16, 16);
      op.dA_log = t[12];
      op.dD = t[13];
      op.ddt_bias = t[14];
      run(op, on);
    });
  }
  const double arithmetic = static_cast<double>(elements) * 21 / special_functions_per_second;
  report(bench, seconds_per_call(calls),
         std::max(arithmetic, static_cast<double>(bytes) / bytes_per_second));
}

// {batch, heads, time} of 64 channels, 128 states, one group. The floor is the bytes: x, dy, dx, B,
// C, dt, what is kept, and B's and C's gradients.
void ssd_grad(benchmark::State& bench, DType dtype) {
  const std::int64_t batch = bench.range(0), heads = bench.range(1), time = bench.range(2);
  const std::int64_t channels = 64 * heads, width = channels + 2 * 128;
  const Shape state{batch, channels, 128};
  const Tensor probe({batch, time, width + heads}, dtype, gpu), A_log({heads}, DType::f32, gpu);
  Ssd forward;
  forward.x = probe.view().columns(0, channels);
  forward.B = forward.C = probe.view().columns(channels, 128);
  forward.dt = probe.view().columns(width, heads);
  forward.A_log = A_log;
  const std::int64_t chunk = detail::scan_chunk_steps(forward, Stream(gpu));
  const std::int64_t chunks = (time + chunk - 1) / chunk;
  const std::int64_t bytes = batch * time * (2 * width + channels + 2 * heads) * size_of(dtype) +
                             chunks * state.count() * 4;
  const auto make = [=] {
    return list(random_tensor({batch, time, width}, dtype, -1, 1),
                random_tensor({batch, time, heads}, dtype, -1, 1),
                random_tensor({batch, time, channels}, dtype, -1, 1),
                random_tensor({heads}, DType::f32, 0, 2.7f),
                random_tensor({heads}, DType::f32, -1, 1),
                random_tensor({heads}, DType::f32, -6, -2),
                random_tensor({batch, chunks, channels, 128}, DType::f32, -1, 1),
                random_tensor(state, DType::f32, -1, 1), Tensor({batch, time, width}, dtype, gpu),
                Tensor({batch, time, heads}, dtype, gpu), Tensor({heads}, DType::f32, gpu),
                Tensor({heads}, DType::f32, gpu), Tensor({heads}, DType::f32, gpu));
  };
  time_bytes(bench, bytes, make, [=](auto& t, Stream& stream) {
    SsdGrad op;
    op.x = t[0].view().columns(0, channels);
    op.B = t[0].view().columns(channels, 128);
    op.C = t[0].view().columns(channels + 128, 128);
    op.dt = t[1];
    op.dy = t[2];
    op.A_log = t[3];
    op.D = t[4];
    op.dt_bias = t[5];
    op.chunk_states = t[6];
    op.chunk_steps = chunk;
    op.dfinal_state = op.dinitial_state = t[7];
    op.dx = t[8].view().columns(0, channels);
    op.dB = t[8].view().columns(channels, 128);
    op.dC = t[8].view().columns(channels + 128, 128);
    op.ddt = t[9];
    op.dA_log = t[10];
    op.dD = t[11];
    op.ddt_bias = t[12];
    run(op, stream);
  });
}

// {batch, d_model, time}: forward with a tape, and backward or not.
void layer_training(benchmark::State& bench, bool backward) {
  LayerConfig config;
  config.d_model = bench.range(1);
  const std::int64_t batch = bench.range(0), time = bench.range(2);
  const Layer layer = Layer::random(config, 1, DType::bf16, gpu);
  LayerWeights gradients = zero_gradients(layer.config(), gpu);
  LayerTape tape;
  const Tensor x = random_tensor({batch, time, config.d_model}, DType::bf16, -1, 1);
  const Tensor dy = random_tensor({batch, time, config.d_model}, DType::bf16, -1, 1);
  Tensor y(x.shape(), DType::bf16, gpu), dx(x.shape(), DType::bf16, gpu);
  MambaState state = layer.make_state(batch);
  const std::vector<Call> calls{[&](Stream& stream) {
    LayerOptions options;
    options.tape = &tape;
    layer.forward(x, state, y, stream, options);
    if (backward) layer.backward(tape, dy, nullptr, dx, gradients, stream);
  }};
  const double seconds = seconds_per_call(calls);
  for (auto _ : bench) bench.SetIterationTime(seconds);
  bench.counters["us"] = seconds * 1e6;
}

// {rows, channels}
void norm_grad(benchmark::State& bench) {
  const Shape shape{bench.range(0), bench.range(1)};
  const auto make = [=] {
    return list(random_tensor(shape, DType::f32, -1, 1), random_tensor(shape, DType::bf16, -1, 1),
                random_tensor(shape, DType::f32, -1, 1),
                random_tensor({shape.back()}, DType::f32, -1, 1),
                Tensor({shape.back()}, DType::f32, gpu));
  };
  time_bytes(bench, shape.count() * (4 + 2 + 8 + 2), make, [](auto& t, Stream& stream) {
    AddRmsNormGrad op;
    op.sum = t[0];
    op.dy = op.dx = t[1];
    op.dresidual = t[2];
    op.weight = t[3];
    op.dweight = t[4];
    run(op, stream);
  });
}

// {rows, vocab}
void cross_entropy(benchmark::State& bench) {
  const Shape shape{bench.range(0), bench.range(1)};
  const auto make = [=] {
    return list(random_tensor(shape, DType::bf16, -5, 5),
                Tensor::zeros({shape[0]}, DType::i32, gpu), Tensor({shape[0]}, DType::f32, gpu));
  };
  time_bytes(bench, shape.count() * (2 + 2), make, [](auto& t, Stream& stream) {
    CrossEntropy op;
    op.logits = op.dlogits = t[0];
    op.targets = t[1];
    op.loss = t[2];
    run(op, stream);
  });
}

// {tokens, vocab, d_model}
void embedding_grad(benchmark::State& bench) {
  const std::int64_t tokens = bench.range(0), vocab = bench.range(1), width = bench.range(2);
  const auto make = [=] {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
    std::mt19937 engine(1);
    for (auto& id : ids) id = static_cast<std::int32_t>(engine() % static_cast<unsigned>(vocab));
    return list(Tensor::from(ids, {1, tokens}).to(gpu),
                random_tensor({1, tokens, width}, DType::bf16, -1, 1),
                Tensor::zeros({vocab, width}, DType::f32, gpu));
  };
  time_bytes(bench, tokens * width * (2 + 8), make, [](auto& t, Stream& stream) {
    EmbeddingGrad op;
    op.ids = t[0];
    op.dy = t[1];
    op.dtable = t[2];
    op.accumulate = true;
    run(op, stream);
  });
}

// {elements}
void adamw(benchmark::State& bench) {
  const Shape shape{bench.range(0)};
  const auto make = [=] {
    return list(random_tensor(shape, DType::f32, -1, 1), random_tensor(shape, DType::f32, -1, 1),
                Tensor::zeros(shape, DType::f32, gpu), Tensor::zeros(shape, DType::f32, gpu),
                Tensor(shape, DType::bf16, gpu), Tensor::zeros({1}, DType::f32, gpu));
  };
  time_bytes(bench, shape.count() * (16 + 12 + 2), make, [](auto& t, Stream& stream) {
    AdamWStep op;
    op.weight = t[0];
    op.gradient = t[1];
    op.m = t[2];
    op.v = t[3];
    op.stored = t[4];
    op.squares = t[5];
    op.max_norm = 1;
    run(op, stream);
  });
}

void sum_squares(benchmark::State& bench) {
  const Shape shape{bench.range(0)};
  const auto make = [=] {
    return list(random_tensor(shape, DType::f32, -1, 1), Tensor({1}, DType::f32, gpu));
  };
  time_bytes(bench, shape.count() * 4, make, [](auto& t, Stream& stream) {
    SumSquares op;
    op.x = t[0];
    op.y = t[1];
    run(op, stream);
  });
}

int registered = [] {
  if (cuda_device_count() == 0) return 0;
  const auto add = [](const char* name, auto function) {
    return benchmark::RegisterBenchmark(name, function)->UseManualTime()->Iterations(1);
  };
  add("cuda_conv_grad_bf16", conv_grad)
      ->ArgNames({"batch", "d_inner", "time"})
      ->Args({8, 5120, 2048})
      ->Args({8, 1536, 2048})
      ->Args({1, 5120, 2048});
  const auto add_scan = [](const char* name, DType dtype, bool episodes) {
    return benchmark::RegisterBenchmark(name, scan_grad, dtype, episodes)
        ->UseManualTime()
        ->Iterations(1)
        ->ArgNames({"batch", "d_inner", "time"})
        ->Args({64, 128, 20000});
  };
  add_scan("cuda_scan_grad_bf16", DType::bf16, false)
      ->Args({8, 5120, 2048})
      ->Args({8, 1536, 2048})
      ->Args({1, 1536, 2048});
  add_scan("cuda_scan_grad_f32", DType::f32, false);
  add_scan("cuda_scan_grad_episodes_bf16", DType::bf16, true);
  add_scan("cuda_scan_grad_episodes_f32", DType::f32, true);
  for (const DType dtype : {DType::bf16, DType::f32}) {
    benchmark::RegisterBenchmark(dtype == DType::bf16 ? "cuda_ssd_grad_bf16" : "cuda_ssd_grad_f32",
                                 ssd_grad, dtype)
        ->UseManualTime()
        ->Iterations(1)
        ->ArgNames({"batch", "heads", "time"})
        ->Args({8, 80, 2048})
        ->Args({8, 24, 2048})
        ->Args({1, 80, 16384});
  }
  for (const bool backward : {false, true}) {
    benchmark::RegisterBenchmark(
        backward ? "cuda_layer_forward_backward_bf16" : "cuda_layer_forward_tape_bf16",
        layer_training, backward)
        ->UseManualTime()
        ->Iterations(1)
        ->ArgNames({"batch", "d_model", "time"})
        ->Args({8, 768, 2048})
        ->Args({8, 2560, 2048})
        ->Args({64, 64, 20000});
  }
  add("cuda_add_rms_norm_grad_bf16", norm_grad)
      ->ArgNames({"rows", "channels"})
      ->Args({16384, 2560})
      ->Args({16384, 768});
  add("cuda_cross_entropy_bf16", cross_entropy)->ArgNames({"rows", "vocab"})->Args({4096, 50280});
  add("cuda_embedding_grad_bf16", embedding_grad)
      ->ArgNames({"tokens", "vocab", "d_model"})
      ->Args({16384, 50280, 768})
      ->Args({16384, 256, 768});
  add("cuda_adamw", adamw)->ArgNames({"elements"})->Args({std::int64_t{1} << 26});
  add("cuda_sum_squares", sum_squares)->ArgNames({"elements"})->Args({std::int64_t{1} << 26});
  return 1;
}();

}  // namespace
