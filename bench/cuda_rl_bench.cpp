// Memory agents on CUDA: a rollout alone, and a controller's forward and backward over the whole of
// it, which is what a minibatch costs. f32, width 64.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>
#include <vector>

#include "cuda_timing.hpp"
#include "rl/rollout/rollout.hpp"

namespace {

using namespace mamba;

// The median of some calls, each waited for.
template <class F>
double seconds_of(Stream& stream, const F& call) {
  std::vector<double> times;
  for (int i = 0; i < 7; ++i) {
    stream.synchronize();
    const auto start = std::chrono::steady_clock::now();
    call();
    stream.synchronize();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    times.push_back(elapsed.count());
  }
  std::sort(times.begin() + 2, times.end());  // the first two warm up
  return times[4];
}

void report_steps(benchmark::State& bench, double seconds, std::int64_t steps) {
  for (auto _ : bench) bench.SetIterationTime(seconds);
  bench.counters["ms"] = seconds * 1e3;
  bench.counters["million_env_steps_per_s"] = static_cast<double>(steps) / seconds * 1e-6;
}

mamba_rl::AgentConfig agent_config(const std::string& controller) {
  mamba_rl::AgentConfig config;
  config.controller.kind = controller;
  config.observation = 7;
  config.actions = 16;
  return config;
}

// {environments, time}
void rollout(benchmark::State& bench, const std::string& controller, bool by_steps) {
  const std::int64_t batch = bench.range(0), time = bench.range(1);
  mamba_rl::EnvironmentConfig task;
  task.delay = static_cast<std::int32_t>(time) - 2;
  const mamba_rl::Agent agent(agent_config(controller), gpu);
  mamba_rl::Environments environments(task, static_cast<std::int32_t>(batch), 0, gpu);
  StackState state = agent.make_state(batch);
  mamba_rl::Rollout rollout;
  rollout.prepare(agent, batch, 1, time);
  Stream stream(gpu);
  const auto how = by_steps ? mamba_rl::collect_by_steps : mamba_rl::collect;
  const double seconds =
      seconds_of(stream, [&] { how(agent, environments, state, rollout, false, false, stream); });
  report_steps(bench, seconds, batch * time);
}

// {environments, time}
void forward_backward(benchmark::State& bench, const std::string& kind) {
  const std::int64_t batch = bench.range(0), time = bench.range(1);
  const auto controller = mamba_rl::Controller::make(agent_config(kind).controller, gpu);
  const auto tape = controller->make_tape();
  const Tensor x = random_tensor({batch, time, 64}, DType::f32, -1, 1);
  const Tensor reset = Tensor::zeros({batch, time}, DType::i32, gpu);
  Tensor y(x.shape(), DType::f32, gpu), dx(x.shape(), DType::f32, gpu);
  StackState state = controller->make_state(batch);
  Stream stream(gpu);
  const double seconds = seconds_of(stream, [&] {
    controller->forward(x, state, reset, y, tape.get(), stream);
    controller->backward(*tape, x, nullptr, dx, stream);
  });
  report_steps(bench, seconds, batch * time);
}

int registered = [] {
  if (cuda_device_count() == 0) return 0;
  const auto add = [](const std::string& name, auto function, auto... more) {
    return benchmark::RegisterBenchmark(name.c_str(), function, more...)
        ->UseManualTime()
        ->Iterations(1)
        ->ArgNames({"environments", "time"});
  };
  for (const std::string controller : {"mamba", "gru"}) {
    add("cuda_rl_rollout_" + controller, rollout, controller, false)
        ->Args({64, 20000})
        ->Args({128, 20000})
        ->Args({1024, 1024});
    add("cuda_rl_rollout_by_steps_" + controller, rollout, controller, true)->Args({64, 1024});
    add("cuda_rl_forward_backward_" + controller, forward_backward, controller)
        ->Args({64, 20000})
        ->Args({16, 20000});
  }
  return 1;
}();

}  // namespace
