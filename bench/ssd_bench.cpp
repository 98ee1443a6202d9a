// Ssd and its gradient on the CPU: first right (some channels against a plain loop in double, the
// gradient by what the outputs are linear in), then timed. Counter: nanoseconds per channel and
// token.
#include <benchmark/benchmark.h>
#include <hwy/highway.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <mamba/detail/scan_chunk.hpp>
#include <mamba/grad_ops.hpp>

#include "random_tensor.hpp"

namespace {

using mamba::DType;
using mamba::Shape;
using mamba::Tensor;
using mamba::bench::random_tensor;

struct Sizes {
  std::int64_t batch, time, heads, groups;
  std::int64_t channels() const { return heads * head_dim; }
  static constexpr std::int64_t head_dim = 64, d_state = 128;
};

// As in a layer: x, B and C are columns of one convolved tensor.
struct Operands {
  Sizes sizes;
  Tensor xBC, dt, A_log, D, dt_bias, state, y;

  Operands(const Sizes& s, DType dtype)
      : sizes(s),
        xBC(random_tensor({s.batch, s.time, s.channels() + 2 * s.groups * s.d_state}, dtype)),
        dt(random_tensor({s.batch, s.time, s.heads}, dtype)),
        A_log(random_tensor({s.heads}, DType::f32, 0, 2.8f)),
        D(random_tensor({s.heads}, DType::f32, 0, 1)),
        dt_bias(random_tensor({s.heads}, DType::f32, -6, -2)),
        state(Tensor::zeros({s.batch, s.channels(), s.d_state}, DType::f32)),
        y({s.batch, s.time, s.channels()}, dtype) {}

  mamba::Ssd op() {
    const std::int64_t channels = sizes.channels(), width = sizes.groups * sizes.d_state;
    mamba::Ssd ssd;
    ssd.x = xBC.view().columns(0, channels);
    ssd.B = xBC.view().columns(channels, width);
    ssd.C = xBC.view().columns(channels + width, width);
    ssd.dt = dt;
    ssd.A_log = A_log;
    ssd.D = D;
    ssd.dt_bias = dt_bias;
    ssd.initial_state = state;
    ssd.final_state = state;
    ssd.y = y;
    ssd.groups = sizes.groups;
    return ssd;
  }
};

// The largest difference from a plain loop over one channel, as a fraction of the largest y.
double error_of_channel(const Operands& operands, std::int64_t b, std::int64_t c) {
  const auto f32 = [](const Tensor& t) { return t.to(mamba::Device::cpu(), DType::f32); };
  const Tensor xBC = f32(operands.xBC), dt = f32(operands.dt), y = f32(operands.y);
  const Sizes& s = operands.sizes;
  const std::int64_t head = c / s.head_dim, group = head / (s.heads / s.groups);
  std::vector<double> h(s.d_state);
  double worst = 0, largest = 0;
  for (std::int64_t t = 0; t < s.time; ++t) {
    const std::int64_t token = b * s.time + t;
    const float* row = xBC.data<float>() + token * xBC.dim(2);
    const float* B = row + s.channels() + group * s.d_state;
    const float* C = B + s.groups * s.d_state;
    const double v =
        dt.data<float>()[token * s.heads + head] + operands.dt_bias.data<float>()[head];
    const double delta = std::log1p(std::exp(v));
    const double decay = std::exp(-std::exp(operands.A_log.data<float>()[head]) * delta);
    double sum = operands.D.data<float>()[head] * row[c];
    for (std::int64_t n = 0; n < s.d_state; ++n) {
      double& state = h[static_cast<std::size_t>(n)];
      state = decay * state + delta * B[n] * row[c];
      sum += C[n] * state;
    }
    worst = std::max(worst, std::abs(y.data<float>()[token * s.channels() + c] - sum));
    largest = std::max(largest, std::abs(sum));
  }
  return worst / largest;
}

void ssd(benchmark::State& state, const Sizes& sizes, DType dtype, int threads,
         std::int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  Operands operands(sizes, dtype);
  mamba::Stream stream(mamba::Device::cpu(), threads);
  const mamba::Ssd op = operands.op();
  run(op, stream);
  const double allowed = dtype == DType::f32 ? 1e-5 : 4e-3;
  for (std::int64_t c : {std::int64_t{0}, sizes.channels() / 2 + 1, sizes.channels() - 1}) {
    if (!(error_of_channel(operands, sizes.batch - 1, c) < allowed)) {
      state.SkipWithError("wrong result");
    }
  }
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) run(op, stream);
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * operands.y.shape().count());
  hwy::SetSupportedTargetsForTest(0);
}

// What a gradient needs beside the forward run's operands, and what comes out.
struct Gradients {
  Tensor dy, chunk_states, dxBC, ddt, dA_log, dD, ddt_bias;
  mamba::Ssd forward;
  mamba::SsdGrad backward;

  Gradients(Operands& operands, DType dtype, const mamba::Stream& stream)
      : dy(random_tensor(operands.y.shape(), dtype)),
        dxBC(operands.xBC.shape(), dtype),
        ddt(operands.dt.shape(), dtype),
        dA_log(operands.A_log.shape(), DType::f32),
        dD(operands.D.shape(), DType::f32),
        ddt_bias(operands.D.shape(), DType::f32),
        forward(operands.op()) {
    forward.initial_state = {};
    const std::int64_t steps = mamba::detail::scan_chunk_steps(forward, stream);
    const Sizes& s = operands.sizes;
    const std::int64_t channels = s.channels(), width = s.groups * s.d_state;
    chunk_states = Tensor({s.batch, (s.time + steps - 1) / steps, channels, s.d_state}, DType::f32);
    forward.chunk_states = chunk_states;
    forward.chunk_steps = backward.chunk_steps = steps;
    backward.x = forward.x;
    backward.B = forward.B;
    backward.C = forward.C;
    backward.dt = forward.dt;
    backward.A_log = forward.A_log;
    backward.D = forward.D;
    backward.dt_bias = forward.dt_bias;
    backward.groups = forward.groups;
    backward.chunk_states = chunk_states;
    backward.dy = dy;
    backward.dx = dxBC.view().columns(0, channels);
    backward.dB = dxBC.view().columns(channels, width);
    backward.dC = dxBC.view().columns(channels + width, width);
    backward.ddt = ddt;
    backward.dA_log = dA_log;
    backward.dD = dD;
    backward.ddt_bias = ddt_bias;
  }
};

double product(const mamba::ConstTensorView& a, const mamba::ConstTensorView& b) {
  const auto f32 = [](const mamba::ConstTensorView& view) {
    Tensor dense(view.shape(), DType::f32);
    mamba::Stream& stream = mamba::default_stream();
    copy(view, dense, stream);
    return dense;
  };
  const Tensor x = f32(a), y = f32(b);
  double sum = 0;
  for (std::int64_t i = 0; i < x.count(); ++i) {
    sum += double{x.data<float>()[i]} * y.data<float>()[i];
  }
  return sum;
}

// y is linear in x, and y - D x in B and in C: x . dx is dy . y, and B . dB is C . dC.
bool is_gradient(const Gradients& of, const Operands& operands) {
  const double outputs = product(of.dy, operands.y);
  const double size = std::sqrt(product(of.dy, of.dy) * product(operands.y, operands.y));
  const double by_x = product(of.backward.x, of.backward.dx);
  const double by_B = product(of.backward.B, of.backward.dB);
  const double by_C = product(of.backward.C, of.backward.dC);
  const double allowed = (operands.y.dtype() == DType::f32 ? 1e-5 : 4e-3) * size;
  return std::abs(by_x - outputs) < allowed && std::abs(by_B - by_C) < allowed;
}

void ssd_grad(benchmark::State& state, const Sizes& sizes, DType dtype, int threads,
              bool gradient) {
  Operands operands(sizes, dtype);
  mamba::Stream stream(mamba::Device::cpu(), threads);
  const Gradients of(operands, dtype, stream);
  run(of.forward, stream);
  run(of.backward, stream);
  if (!is_gradient(of, operands)) state.SkipWithError("wrong result");
  const auto start = std::chrono::steady_clock::now();
  for (auto _ : state) {
    if (gradient) {
      run(of.backward, stream);
    } else {
      run(of.forward, stream);
    }
  }
  const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - start;
  state.counters["ns_per_channel_token"] =
      taken.count() / static_cast<double>(state.iterations() * operands.y.shape().count());
}

std::string name_of_run(const char* what, const Sizes& s, DType dtype, int threads,
                        const char* target) {
  return what + Shape{s.batch, s.time, s.heads, s.head_dim}.to_string() +
         "/groups:" + std::to_string(s.groups) + "/" + name_of(dtype) + target +
         "/threads:" + std::to_string(threads);
}

const bool registered = [] {
  struct Target {
    const char* name;
    std::int64_t mask;
  };
  std::vector<Target> targets = {{"/best", 0}};
#if HWY_ARCH_X86
  targets.push_back({"/AVX2", HWY_AVX2 | HWY_STATIC_TARGET});
#endif
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int threads : {1, 2}) {
      for (const Target& target : targets) {
        for (const Sizes& s :
             {Sizes{1, 512, 24, 1}, Sizes{4, 128, 64, 8}, Sizes{1, 8, 24, 1}, Sizes{1, 1, 24, 1}}) {
          const std::string name = name_of_run("ssd/", s, dtype, threads, target.name);
          benchmark::RegisterBenchmark(name.c_str(), ssd, s, dtype, threads, target.mask)
              ->UseRealTime();
        }
      }
      for (const Sizes& s : {Sizes{1, 512, 24, 1}, Sizes{4, 128, 64, 8}}) {
        for (const bool gradient : {false, true}) {
          const char* what = gradient ? "train_ssd_grad/" : "train_ssd/";
          const std::string name = name_of_run(what, s, dtype, threads, "");
          benchmark::RegisterBenchmark(name.c_str(), ssd_grad, s, dtype, threads, gradient)
              ->UseRealTime();
        }
      }
    }
  }
  return true;
}();

}  // namespace
