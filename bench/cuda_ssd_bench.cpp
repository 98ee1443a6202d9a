// Ssd on CUDA at the sizes of the published models (see cuda_timing.hpp). Results are checked by
// the tests, on the same kernels.
#include <benchmark/benchmark.h>

#include <mamba/ops.hpp>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cuda_timing.hpp"

namespace {

using namespace mamba;

struct SsdSizes {
  std::int64_t batch, time, heads, head_dim, d_state;

  std::int64_t channels() const { return heads * head_dim; }
  // x, B, C, dt and y once, and the state in and out.
  std::int64_t bytes(DType dtype) const {
    return batch * time * (2 * channels() + 2 * d_state + heads) * size_of(dtype) +
           2 * batch * channels() * d_state * 4;
  }
  // Products over chunks of 64 steps; those of B and C are shared by all heads.
  double flop() const {
    const std::int64_t of_head = 2 * 64 * head_dim + 4 * head_dim * d_state;
    return static_cast<double>(batch * time * (heads * of_head + 2 * 64 * d_state));
  }
};

// x, B and C are columns of one convolved tensor, as in a layer.
struct SsdOperands {
  Tensor xBC, dt, A_log, D, dt_bias, state, y;

  SsdOperands(const SsdSizes& s, DType dtype)
      : xBC(random_tensor({s.batch, s.time, s.channels() + 2 * s.d_state}, dtype, -1, 1)),
        dt(random_tensor({s.batch, s.time, s.heads}, dtype, -1, 1)),
        A_log(random_tensor({s.heads}, DType::f32, 0, 2.7f)),
        D(random_tensor({s.heads}, DType::f32, 0, 1)),
        dt_bias(random_tensor({s.heads}, DType::f32, -6, -2)),
        state(random_tensor({s.batch, s.channels(), s.d_state}, DType::f32, -1, 1)),
        y({s.batch, s.time, s.channels()}, dtype, gpu) {}
};

Call ssd_call(const SsdSizes& s, DType dtype) {
  const auto o = std::make_shared<SsdOperands>(s, dtype);
  return [o, s](Stream& stream) {
    Ssd op;
    op.x = o->xBC.view().columns(0, s.channels());
    op.B = o->xBC.view().columns(s.channels(), s.d_state);
    op.C = o->xBC.view().columns(s.channels() + s.d_state, s.d_state);
    op.dt = o->dt;
    op.A_log = o->A_log;
    op.D = o->D;
    op.dt_bias = o->dt_bias;
    op.initial_state = op.final_state = o->state;
    op.y = o->y;
    run(op, stream);
  };
}

// {batch, time, heads, head_dim, d_state}
void ssd(benchmark::State& bench, DType dtype) {
  const SsdSizes s{bench.range(0), bench.range(1), bench.range(2), bench.range(3), bench.range(4)};
  std::vector<Call> calls;
  for (std::size_t i = copies_of(s.bytes(dtype)); i-- > 0;) calls.push_back(ssd_call(s, dtype));
  const double memory = static_cast<double>(s.bytes(dtype)) / bytes_per_second;
  const double arithmetic = s.time > 1 ? s.flop() / bf16_flop_per_second : 0;
  report(bench, seconds_per_call(calls), std::max(memory, arithmetic));
}

int registered = [] {
  if (cuda_device_count() == 0) return 0;
  const auto add = [](DType dtype, const std::vector<std::array<std::int64_t, 5>>& sizes) {
    const std::string name = std::string("cuda_ssd_") + name_of(dtype);
    auto* all = benchmark::RegisterBenchmark(name.c_str(), ssd, dtype)
                    ->ArgNames({"batch", "time", "heads", "head_dim", "d_state"})
                    ->UseManualTime()
                    ->Iterations(1);
    for (const auto& [b, t, h, p, n] : sizes) all->Args({b, t, h, p, n});
  };
  add(DType::bf16, {{8, 2048, 80, 64, 128},
                    {8, 2048, 24, 64, 128},
                    {1, 16384, 80, 64, 128},
                    {1, 16384, 24, 64, 128},
                    {1, 2048, 80, 64, 128},
                    {1, 2048, 24, 64, 128},
                    {8, 2048, 64, 80, 128},
                    {8, 2048, 160, 32, 64},
                    {8, 2048, 40, 128, 256},
                    {256, 1, 80, 64, 128},
                    {8, 1, 80, 64, 128},
                    {64, 1, 24, 64, 128},
                    {1, 1, 24, 64, 128}});
  add(DType::f32, {{8, 2048, 80, 64, 128}});
  return 1;
}();

}  // namespace
