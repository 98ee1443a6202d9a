// The CUDA kernels at the sizes of bench/README.md (see cuda_timing.hpp). Results are checked by
// the tests, on the same kernels.
#include <benchmark/benchmark.h>

#include <mamba/detail/scan_chunk.hpp>
#include <mamba/layer.hpp>
#include <mamba/ops.hpp>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using namespace mamba;

// As it comes from a layer; with what its gradient needs; so, for an agent that plays episodes:
// with resets, and without a gate.
enum class ScanUse { inference, training, episodes };

struct ScanOperands {
  Tensor x, z, dt, bc, A_log, D, dt_bias, state, y;
  Tensor reset, chunk_states;  // these may be absent, and z
  std::int64_t chunk_steps = 0;
};

std::shared_ptr<ScanOperands> scan_operands(std::int64_t batch, std::int64_t channels,
                                            std::int64_t time, std::int64_t d_state, DType dtype,
                                            ScanUse use) {
  auto o = std::make_shared<ScanOperands>();
  o->x = random_tensor({batch, time, channels}, dtype, -1, 1);
  if (use != ScanUse::episodes) o->z = random_tensor({batch, time, channels}, dtype, -2, 2);
  o->dt = random_tensor({batch, time, channels}, dtype, -1, 1);
  o->bc = random_tensor({batch, time, 2 * d_state}, dtype, -1, 1);
  o->A_log = random_tensor({channels, d_state}, DType::f32, 0, 2.7f);
  o->D = random_tensor({channels}, DType::f32, 0, 1);
  o->dt_bias = random_tensor({channels}, DType::f32, -6, -2);
  o->state = random_tensor({batch, channels, d_state}, DType::f32, -1, 1);
  o->y = Tensor({batch, time, channels}, dtype, gpu);
  if (use == ScanUse::episodes) o->reset = episode_resets(batch, time);
  if (use == ScanUse::inference) return o;
  SelectiveScan shapes;
  shapes.x = o->x;
  shapes.A_log = o->A_log;
  o->chunk_steps = detail::scan_chunk_steps(shapes, Stream(gpu));
  const std::int64_t chunks = (time + o->chunk_steps - 1) / o->chunk_steps;
  o->chunk_states = Tensor({batch, chunks, channels, d_state}, DType::f32, gpu);
  return o;
}

Call scan_call(const std::shared_ptr<ScanOperands>& o) {
  return [o](Stream& stream) {
    const std::int64_t d_state = o->A_log.dim(1);
    SelectiveScan scan;
    scan.x = o->x;
    scan.z = o->z;
    scan.dt = o->dt;
    scan.A_log = o->A_log;
    scan.B = o->bc.view().columns(0, d_state);
    scan.C = o->bc.view().columns(d_state, d_state);
    scan.D = o->D;
    scan.dt_bias = o->dt_bias;
    scan.initial_state = scan.final_state = o->state;
    scan.y = o->y;
    scan.reset = o->reset;
    scan.chunk_states = o->chunk_states;
    scan.chunk_steps = o->chunk_steps;
    run(scan, stream);
  };
}

// {batch, channels, time, d_state}
void scan(benchmark::State& bench, DType dtype, ScanUse use) {
  const std::int64_t batch = bench.range(0), channels = bench.range(1), time = bench.range(2);
  const std::int64_t d_state = bench.range(3);
  const std::int64_t elements = batch * channels * time;
  std::int64_t bytes = (use == ScanUse::episodes ? 3 : 4) * elements * size_of(dtype) +
                       2 * batch * time * d_state * size_of(dtype) +
                       2 * batch * channels * d_state * 4;
  std::vector<Call> calls;
  for (std::size_t i = copies_of(bytes); i-- > 0;) {
    const auto operands = scan_operands(batch, channels, time, d_state, dtype, use);
    if (i == 0 && operands->chunk_states) bytes += operands->chunk_states.count() * 4;
    calls.push_back(scan_call(operands));
  }
  const double arithmetic =
      static_cast<double>(elements * (d_state + 4)) / special_functions_per_second;
  const double memory = static_cast<double>(bytes) / bytes_per_second;
  report(bench, seconds_per_call(calls), std::max(arithmetic, memory));
}

void conv(benchmark::State& bench) {
  const std::int64_t batch = bench.range(0), channels = bench.range(1), time = bench.range(2);
  const std::int64_t bytes = 2 * batch * channels * time * 2;
  std::vector<Call> calls;
  for (std::size_t i = 0; i < copies_of(bytes); ++i) {
    const auto xz =
        std::make_shared<Tensor>(random_tensor({batch, time, 2 * channels}, DType::bf16, -1, 1));
    const auto y = std::make_shared<Tensor>(Shape{batch, time, channels}, DType::bf16, gpu);
    const auto state =
        std::make_shared<Tensor>(Tensor::zeros({batch, channels, 3}, DType::bf16, gpu));
    const auto weight = std::make_shared<Tensor>(random_tensor({channels, 4}, DType::f32, -1, 1));
    const auto bias = std::make_shared<Tensor>(random_tensor({channels}, DType::f32, -1, 1));
    calls.push_back([=](Stream& stream) {
      CausalConv op;
      op.x = xz->view().columns(0, channels);
      op.weight = *weight;
      op.bias = *bias;
      op.initial_state = op.final_state = *state;
      op.y = *y;
      run(op, stream);
    });
  }
  report(bench, seconds_per_call(calls), static_cast<double>(bytes) / bytes_per_second);
}

double layer_floor(const LayerConfig& c, std::int64_t batch, std::int64_t time) {
  const auto tokens = static_cast<double>(batch * time);
  const auto inner = static_cast<double>(c.d_inner);
  const auto model = static_cast<double>(c.d_model);
  const bool mamba2 = c.mixer == MixerKind::mamba2;
  // x, B, C and y of Ssd move through memory; the scan's states need the special functions.
  const auto wide = static_cast<double>(c.conv_channels());
  const double low = mamba2 ? model * (wide - inner + static_cast<double>(c.heads()))
                            : inner * static_cast<double>(2 * c.dt_rank + 2 * c.d_state);
  const double flop = 2 * tokens * (3 * model * inner + low);
  const double scan =
      mamba2 ? tokens * 2 * (wide + inner) / bytes_per_second
             : tokens * inner * static_cast<double>(c.d_state + 4) / special_functions_per_second;
  return flop / bf16_flop_per_second + scan + tokens * wide * 4 / bytes_per_second;
}

// {batch, d_model, time}
void layer(benchmark::State& bench, MixerKind mixer) {
  LayerConfig config;
  config.mixer = mixer;
  config.d_model = bench.range(1);
  const std::int64_t batch = bench.range(0), time = bench.range(2);
  const Layer one = Layer::random(config, 1, DType::bf16, gpu);
  std::vector<Call> calls;
  for (std::size_t i = 0; i < 2; ++i) {
    const auto x =
        std::make_shared<Tensor>(random_tensor({batch, time, config.d_model}, DType::bf16, -1, 1));
    const auto y = std::make_shared<Tensor>(x->shape(), DType::bf16, gpu);
    const auto state = std::make_shared<MambaState>(one.make_state(batch));
    calls.push_back([&one, x, y, state](Stream& stream) { one.forward(*x, *state, *y, stream); });
  }
  report(bench, seconds_per_call(calls), layer_floor(one.config(), batch, time));
}

void name_scan(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "d_inner", "time", "d_state"})->UseManualTime()->Iterations(1);
}

void growth(benchmark::internal::Benchmark* b) {
  name_scan(b);
  for (std::int64_t batch : {1, 2, 4, 8, 16, 32, 64, 128, 256}) b->Args({batch, 1536, 1024, 16});
  for (std::int64_t time = 1; time <= 65536; time *= 4) b->Args({1, 1536, time, 16});
  for (std::int64_t d_state : {4, 8, 16, 32, 64, 128, 256}) b->Args({1, 1536, 1024, d_state});
}

int registered = [] {
  if (cuda_device_count() == 0) return 0;
  auto* bf16_scans =
      benchmark::RegisterBenchmark("cuda_scan_bf16", scan, DType::bf16, ScanUse::inference);
  name_scan(bf16_scans);
  for (const auto& [b, d, l] : {std::array<std::int64_t, 3>{8, 5120, 2048},
                                {8, 1536, 2048},
                                {1, 5120, 2048},
                                {1, 1536, 2048},
                                {1, 1536, 16384},
                                {2, 1536, 65536},
                                {64, 128, 20000},
                                {256, 5120, 1},
                                {8, 1536, 1}}) {
    bf16_scans->Args({b, d, l, 16});
  }
  name_scan(benchmark::RegisterBenchmark("cuda_scan_f32", scan, DType::f32, ScanUse::inference)
                ->Args({8, 5120, 2048, 16}));
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const std::string suffix = dtype == DType::f32 ? "f32" : "bf16";
    const auto add = [&](const std::string& name, ScanUse use) {
      name_scan(benchmark::RegisterBenchmark((name + suffix).c_str(), scan, dtype, use)
                    ->Args({64, 128, 20000, 16}));
    };
    add("cuda_scan_training_", ScanUse::training);
    add("cuda_scan_episodes_", ScanUse::episodes);
  }
  benchmark::RegisterBenchmark("cuda_conv_bf16", conv)
      ->ArgNames({"batch", "d_inner", "time"})
      ->Args({8, 5120, 2048})
      ->Args({8, 1536, 1})
      ->UseManualTime()
      ->Iterations(1);
  benchmark::RegisterBenchmark("cuda_layer_bf16", layer, MixerKind::mamba1)
      ->ArgNames({"batch", "d_model", "time"})
      ->Args({8, 2560, 2048})
      ->Args({8, 768, 2048})
      ->Args({1, 768, 2048})
      ->Args({64, 768, 1})
      ->Args({1, 768, 1})
      ->UseManualTime()
      ->Iterations(1);
  benchmark::RegisterBenchmark("cuda_layer_mamba2_bf16", layer, MixerKind::mamba2)
      ->ArgNames({"batch", "d_model", "time"})
      ->Args({8, 2560, 2048})
      ->Args({8, 768, 2048})
      ->UseManualTime()
      ->Iterations(1);
  growth(benchmark::RegisterBenchmark("cuda_scan_growth", scan, DType::bf16, ScanUse::inference));
  return 1;
}();

}  // namespace
